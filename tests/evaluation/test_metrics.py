import random
import re
import sys
from dataclasses import dataclass

import pytest
import sacrebleu
import torch
from absl import logging as absl_logging
from rouge_score.rouge_scorer import RougeScorer

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig
from tometune.config.metrics import metric_problem
from tometune.config.model import ModelConfig
from tometune.evaluation.metrics import (
    METRICS,
    MODEL_METRICS,
    MetricContext,
    Scores,
    as_rouge_words,
    identity_of,
    score,
    squad,
)
from tometune.evaluation.results import read_scores
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import fingerprint, load_tasks
from tometune.runs.inputs import evaluation_fingerprints

# rouge_score brings absl, whose log handler closes the stream it met on import (here pytest's capture) whenever
# logging is set up again, as Hydra does.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

PREDICTIONS = ["The cat sat on the mat.", "", "Paris", "The 3 dogs!"]
REFERENCES = [
    ["A cat sat on a mat.", "The cat sat on the mat."],
    ["something"],
    ["in Paris, France"],
    ["three dogs", "3 dogs"],
]
TYPES = ["rouge1", "rouge2", "rougeL"]
WORDS = [
    *("the", "cat", "sat", "on", "mat", "runs", "running", "ran", "quickly", "organisations", "organization"),
    *("universities", "generously", "national", "3.14", "2026", "don't", "it's", "e-mail", "a_b", "C++", "x=1"),
    *("\n", " \t ", "naïve", "café", "Straße", "Ünïcode", "...", ",", "!", "“quoted”"),
]


def text(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.choice([0, 1, 2, 5, 20, 80])))


def google(target: str, prediction: str) -> dict[str, float]:
    scores = RougeScorer(TYPES, use_stemmer=True).score(target, prediction)
    return {kind: scores[kind].fmeasure for kind in TYPES}


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_rouge_of_latin_text_equals_googles_exactly(count):
    """Of several references it is the maximum of each type."""
    generator = random.Random(0)
    pairs = [(text(generator), [text(generator)]) for _ in range(count)]
    for prediction, _ in pairs[:100]:
        pairs += [(prediction, [prediction]), (prediction, [" ".join(reversed(prediction.split()))])]
        pairs += [(prediction, [text(generator) for _ in range(generator.choice([2, 8]))])]
    pairs += [("", [""]), ("a", [""]), ("", ["a"]), ("!!!", ["..."]), ("1000", ["1,000"]), ("a" * 500, ["A" * 500])]
    pairs += [("universities running", ["university runs"])]
    found = score([], [prediction for prediction, _ in pairs], [targets for _, targets in pairs])
    expected = [[google(target, prediction) for target in targets] for prediction, targets in pairs]
    assert found == {kind: [max(each[kind] for each in scores) for scores in expected] for kind in TYPES}
    assert found["rouge1"][-1] == 1, "stems are compared"
    assert 0.02 < sum(found["rougeL"]) / len(pairs) < 0.98


@pytest.mark.parametrize("answer", ["٤٢", "ＡＢＣ１２", "½", "😀", "é", "№ 5", "∑"])
def test_identical_answers_score_one_whatever_they_consist_of(answer):
    found = score([], [answer, "something else"], [[answer], [answer]])
    assert (found["rouge1"], found["rougeL"]) == ([1, 0], [1, 0])


@pytest.mark.parametrize(
    "answer",
    [
        "苹果在秋天成熟。",
        "りんごは秋に熟します。",
        "사과는 가을에 익는다.",
        "Яблоки созревают осенью.",
        "ينضج التفاح في الخريف.",
        "सेब पतझड़ में पकते हैं।",
        "แอปเปิลสุกในฤดูใบไม้ร่วง",
        "Խնձորը հասունանում է աշնանը։",
    ],
)
def test_rouge_judges_every_script(answer):
    assert len(as_rouge_words(answer).split()) > 2
    wrong = ["GPU", "", "apples ripen in autumn"]
    found = score([], [answer, f"{answer} {answer}", *wrong], [[answer]] * (2 + len(wrong)))
    for kind in TYPES:
        assert found[kind][0] == 1
        assert 0 < found[kind][1] < 1
        assert found[kind][2:] == [0] * len(wrong)


def test_a_shared_latin_word_does_not_make_a_wrong_answer_right():
    found = score([], ["GPU"], [["没有 GPU 也可以训练"]])
    assert 0 < found["rouge1"][0] < 0.3
    assert 0 < score([], ["Это не USB совсем"], [["USB"]])["rouge1"][0] < 0.5
    assert score([], ["The running dogs"], [["the runs of dogs собака"]])["rouge1"][0] == pytest.approx(6 / 8)


def test_rouge_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    score([], ["a"], [["a"]])
    assert list(tmp_path.iterdir()) == []
    assert score([], ["a", "b", "c"], [["a"], [], ["c"]])["rougeL"] == [1, 0, 1], "no reference"
    with pytest.raises(ValueError, match="references"):
        score([], ["a", "b"], [["a"]])


def test_metrics_are_those_of_sacrebleu_and_squad_and_1_for_the_reference_itself():
    columns = score(list(METRICS), PREDICTIONS, REFERENCES)
    assert list(columns) == [*TYPES, "chrf", "bleu", "token_f1", "exact_match"]
    for values in columns.values():
        assert (values[0], values[1]) == (pytest.approx(1), 0)
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    for name, sentence in (("chrf", sacrebleu.sentence_chrf), ("bleu", sacrebleu.sentence_bleu)):
        expected = [max(sentence(text, [target]).score for target in targets) / 100 for text, targets in pairs]
        assert columns[name] == pytest.approx(expected)
    assert columns["token_f1"] == pytest.approx([1, 0, 0.5, 1])
    assert columns["exact_match"] == [1, 0, 0, 1]
    assert squad("The  Cat's, an (apple)!") == "cats apple"
    assert score(["token_f1"], ["the", "a dog dog"], [["an"], ["dog"]])["token_f1"] == pytest.approx([1, 2 / 3])


OWN = """
def words(predictions, references):
    return {"shared": [len(set(text.split()) & set(one[0].split())) for text, one in zip(predictions, references)]}
def short(predictions, references): return {"few": []}
def taken(predictions, references): return {"nll": [1.0] * len(predictions)}
def raises(predictions, references): return references[0]["text"]
same = lambda predictions, references: {"shared": [1] * len(predictions)}
"""


def test_a_function_in_the_current_folder_is_a_metric_and_part_of_the_identity(jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_words.py").write_text(OWN)
    rows = [{"input": "Say so.", "references": ["so"]}]
    config = EvalConfig(tasks={"t": jsonl(rows)}, metrics=["my_words:words"])
    assert score(config.metrics, ["a b", "c"], [["b a"], ["d"]])["shared"] == [2, 0]
    model = ModelConfig(id="a/b", revision="c" * 40)
    (task,), before = load_tasks(config), evaluation_fingerprints(model, config)
    assert task.config.metrics == ["rouge", "my_words:words"]
    (tmp_path / "my_words.py").write_text(OWN + "# edited")
    after = evaluation_fingerprints(model, config)
    assert {key for key in before if before[key] != after[key]} == {"eval.metrics.my_words:words"}
    assert load_tasks(config)[0].digest != task.digest


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("my_word:words", r"no file my_word\.py in /.*; did you mean my_words\?$"),
        ("my_words:word", r"my_words\.py has no function word; did you mean words\?$"),
        ("broken:f", r"cannot be imported \(SyntaxError: "),
        ("my_words:short", "few must have one finite number for each of 1 predictions$"),
        ("my_words:taken", "its column 'nll' needs another name: "),
        ("my_words:raises", "fails with TypeError: "),
        ("token_f", r"one of rouge, chrf.*; did you mean token_f1\?$"),
        ("os:system", r"no file os\.py in /"),
        ("../my_words:words", "no file "),
    ],
)
def test_a_wrong_metric_of_the_users_own_is_one_line(name, line, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub" if name.startswith("..") else tmp_path)
    (tmp_path / "my_words.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def")
    problem = metric_problem("eval.metrics", name)
    assert re.match(f"eval\\.metrics={name}: {line}", problem), problem
    assert "\n" not in problem
    if name == "my_words:short":
        with pytest.raises(UserError, match="another metric of this task has the column shared too"):
            score(["my_words:words", "my_words:same"], ["a"], [["b"]])


def test_an_installed_package_can_name_a_metric(tmp_path, monkeypatch):
    info = tmp_path / "their_metrics-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-metrics\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[tometune.metrics]\nshared_words = their_words:words\n")
    (tmp_path / "their_words.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert score(["shared_words"], ["a b"], [["b a"]])["shared"] == [2]
    assert identity_of("shared_words") == "shared_words of their-metrics 1.2"
    assert metric_problem("k", "shared_word").endswith("; did you mean shared_words?")


@dataclass
class Similarity:
    """A metric with a model."""

    model: str = "me/similarity"
    revision: str = "a" * 40

    def __call__(self, predictions: list[str], references: list[list[str]], context: MetricContext) -> Scores:
        context.cache.mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(1, device=context.device), context.cache / "similarity.pt")
        pairs = zip(predictions, references, strict=True)
        return {"similarity": [float(len(text) / (1 + len(targets[0]))) for text, targets in pairs]}


def test_a_metric_with_a_model_is_scored_and_part_of_the_digest(model, tokenizer, jsonl, tmp_path, monkeypatch):
    monkeypatch.setitem(MODEL_METRICS, "similarity", Similarity())
    rows = [{"input": f"Say {n}.", "references": [f"{n}"]} for n in range(3)]
    config = EvalConfig(tasks={"t": jsonl(rows, metrics=["similarity"], max_new_tokens=4)}, batch_size=4)
    (task,) = load_tasks(config)
    scores = Scorer(tokenizer, [task], config, tmp_path, tmp_path / "cache").stage("base", model)
    found = [line["scores"]["similarity"] for line in read_scores(tmp_path / "eval/base/t.jsonl").values()]
    assert scores["similarity"] == scores["tasks"]["t"]["similarity"] == pytest.approx(sum(found) / 3)
    assert (tmp_path / "cache" / "similarity.pt").exists()
    identity = fingerprint(config.tasks["t"], "eval.tasks.t")
    assert identity == f"{fingerprint(jsonl(rows), 'eval.tasks.t')}; similarity by me/similarity@{'a' * 40}"
    monkeypatch.setitem(MODEL_METRICS, "similarity", Similarity(revision="b" * 40))
    assert load_tasks(config)[0].digest != task.digest
    assert fingerprint(config.tasks["t"], "eval.tasks.t") != identity
