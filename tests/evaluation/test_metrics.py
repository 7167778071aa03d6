import json
from dataclasses import dataclass

import pytest
import sacrebleu
import torch

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig
from tometune.evaluation.metrics import METRICS, MODEL_METRICS, MetricContext, Scores, score, squad
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import fingerprint, load_tasks

PREDICTIONS = ["The cat sat on the mat.", "", "Paris", "The 3 dogs!"]
REFERENCES = [
    ["A cat sat on a mat.", "The cat sat on the mat."],
    ["something"],
    ["in Paris, France"],
    ["three dogs", "3 dogs"],
]


def test_every_metric_is_between_0_and_1_and_1_for_the_reference_itself():
    columns = score(list(METRICS), PREDICTIONS, REFERENCES)
    assert {"rouge1", "rouge2", "rougeL"} < set(columns)
    for values in columns.values():
        assert values[0] == pytest.approx(1)
        assert values[1] == 0
        assert all(0 <= value <= 1 + 1e-9 for value in values)


def test_rouge_is_always_there():
    assert list(score(["token_f1"], ["a"], [["b"]])) == ["rouge1", "rouge2", "rougeL", "token_f1"]


def test_chrf_and_bleu_are_sacrebleus_sentence_scores():
    columns = score(["chrf", "bleu"], PREDICTIONS, REFERENCES)
    for number, (text, targets) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        chrf = max(sacrebleu.sentence_chrf(text, [target]).score for target in targets)
        bleu = max(sacrebleu.sentence_bleu(text, [target]).score for target in targets)
        assert columns["chrf"][number] == pytest.approx(chrf / 100)
        assert columns["bleu"][number] == pytest.approx(bleu / 100)


def test_squad_metrics():
    columns = score(["token_f1", "exact_match"], PREDICTIONS, REFERENCES)
    assert columns["token_f1"] == pytest.approx([1, 0, 0.5, 1])
    assert columns["exact_match"] == [1, 0, 0, 1]
    assert squad("The  Cat's, an (apple)!") == "cats apple"
    assert score(["token_f1"], ["the", "a dog dog"], [["an"], ["dog"]])["token_f1"] == pytest.approx([1, 2 / 3])


def test_unknown_metric():
    with pytest.raises(UserError, match=r"'token_f' is unknown; did you mean token_f1\?.*known: rouge, chrf"):
        score(["token_f"], ["a"], [["b"]])


@dataclass
class Similarity:
    """A metric with a tiny model: the cosine of two texts' mean embedding of characters."""

    model: str = "me/similarity"
    revision: str = "a" * 40

    def __call__(self, predictions: list[str], references: list[list[str]], context: MetricContext) -> Scores:
        torch.manual_seed(0)
        table = torch.nn.Embedding(256, 8, device=context.device)
        context.cache.mkdir(parents=True, exist_ok=True)
        torch.save(table.state_dict(), context.cache / "similarity.pt")

        def embed(text: str) -> torch.Tensor:
            return table(torch.tensor([0, *text.encode()], device=context.device)).mean(dim=0)

        pairs = zip(predictions, references, strict=True)
        with torch.no_grad():
            return {
                "similarity": [
                    max(float(torch.cosine_similarity(embed(text), embed(goal), dim=0)) for goal in goals)
                    for text, goals in pairs
                ]
            }


def test_a_metric_with_a_model_is_scored_and_part_of_the_digest(model, tokenizer, jsonl, tmp_path, monkeypatch):
    monkeypatch.setitem(MODEL_METRICS, "similarity", Similarity())
    rows = [{"input": f"Say {n}.", "references": [f"{n}"]} for n in range(3)]
    config = EvalConfig(tasks={"t": jsonl(rows, metrics=["similarity"], max_new_tokens=4)}, batch_size=4)
    plain = EvalConfig(tasks={"t": jsonl(rows, max_new_tokens=4)})

    (task,) = load_tasks(config)
    scores = Scorer(tokenizer, [task], config, tmp_path, tmp_path / "cache").stage("base", model)
    lines = [json.loads(line) for line in (tmp_path / "eval/base/t.jsonl").read_text().splitlines()]
    found = [line["scores"]["similarity"] for line in lines]
    assert scores["similarity"] == scores["tasks"]["t"]["similarity"] == pytest.approx(sum(found) / 3)
    assert all(-1 <= value <= 1 for value in found)
    assert (tmp_path / "cache" / "similarity.pt").exists()

    identity = fingerprint(config.tasks["t"], "eval.tasks.t")
    assert identity == f"{fingerprint(plain.tasks['t'], 'eval.tasks.t')}; similarity by me/similarity@{'a' * 40}"
    monkeypatch.setitem(MODEL_METRICS, "similarity", Similarity(revision="b" * 40))
    assert load_tasks(config)[0].digest != task.digest
    assert fingerprint(config.tasks["t"], "eval.tasks.t") != identity
    assert Similarity()(["same"], [["other", "same"]], MetricContext("cpu", tmp_path))["similarity"] == pytest.approx(
        [1]
    )
