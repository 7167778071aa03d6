import json
from copy import deepcopy
from functools import partial
from itertools import count
from statistics import fmean

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tometune.config.eval import EvalConfig
from tometune.evaluation import scoring
from tometune.evaluation.results import read_scores
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import load_tasks
from tometune.models.base_models import weights_digest

ROWS = [{"id": f"q{n}", "input": f"Say {n} words.", "references": [f"the fox {n}", "a lazy dog"]} for n in range(7)]
TYPES = ("rouge1", "rouge2", "rougeL")


@pytest.fixture
def config(jsonl):
    settings = {"max_new_tokens": 8, "prompt": "{input}"}
    tasks = {
        "one": jsonl(ROWS, "one.jsonl", metrics=["rouge", "token_f1"], **settings),
        "two": jsonl(ROWS[:3], "two.jsonl", **settings),
    }
    return EvalConfig(tasks=tasks, batch_size=4, max_prompt_tokens=256)


@pytest.fixture
def score(model, tokenizer, config, tmp_path):
    """A function that scores the model in `tmp_path`, or in another folder."""
    caches = count()

    def stage(folder=tmp_path, name="base", cache=None):
        cache = cache or tmp_path / f"cache{next(caches)}"  # with a new one, only the run's own files are found
        return Scorer(tokenizer, load_tasks(config), config, folder, cache).stage(name, model)

    return stage


def rows_of(folder, task="one"):
    return list(read_scores(folder / f"eval/base/{task}.jsonl").values())


@pytest.fixture
def generated(monkeypatch):
    """Numbers of conversations that were answered, by task in order; a call returns and forgets them."""
    counts, real = [], scoring.generate
    monkeypatch.setattr(scoring, "generate", lambda *given: counts.append(len(given[2])) or real(*given))
    return lambda: [counts.pop(0) for _ in tuple(counts)]


def test_files_and_means(score, config, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config.batch_size = None
    scores, rows = score(), rows_of(tmp_path)
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert rows[2]["prompt"] == "<|im_start|>user\nSay 2 words.<|im_end|>\n<|im_start|>assistant\n"
    assert rows[2]["references"] == ROWS[2]["references"]
    assert set(rows[0]) == {"id", "prompt", "prediction", "references", "scores", "tokens", "ended", "shortened"}
    assert scores["tasks"]["one"]["token_f1"] == pytest.approx(fmean(row["scores"]["token_f1"] for row in rows))
    assert "token_f1" not in scores, "the mean over tasks has the columns of all tasks"
    for kind in (*TYPES, "nll"):
        by_task = [fmean(row["scores"][kind] for row in rows_of(tmp_path, task)) for task in ("one", "two")]
        assert [scores["tasks"][task][kind] for task in ("one", "two")] == pytest.approx(by_task)
        assert scores[kind] == pytest.approx(fmean(by_task))
    assert len({row["scores"]["nll"] for row in rows}) == len(rows)
    assert [scores["tasks"][task]["examples"] for task in ("one", "two")] == [7, 3]
    assert (scores["limited"], scores["tokens_per_second"] > 0) == (False, True)
    key = json.loads((tmp_path / "eval/base/one.json").read_text())["key"]
    for found in (*scores["tasks"].values(), key):
        assert (found["engine"], found["batch_size"]) == ("transformers", 16)
    assert score() == scores, "read again"


def test_a_model_in_training_mode_gets_the_same_scores(model, score, tmp_path):
    """Dropout is off while a stage is scored, and the mode is restored."""
    expected = score(tmp_path / "eval")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    found = score(tmp_path / "train")
    assert [found[kind] for kind in TYPES] == [expected[kind] for kind in TYPES]
    assert rows_of(tmp_path / "train") == rows_of(tmp_path / "eval")
    assert all(module.training for module in model.modules())
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()


def test_the_cluster_of_an_example_is_kept_with_its_scores(score, config, tmp_path):
    score()
    for task in config.tasks.values():
        task.cluster = "id"
    for remade in (False, True):  # scores are not made again for a cluster alone
        (tmp_path / "eval/base/one.json").unlink() if remade else None
        score()
        assert [row.get("cluster") for row in rows_of(tmp_path)] == [row["id"] if remade else None for row in ROWS]


def test_a_broken_file_is_redone(score, tmp_path, generated):
    first = score()
    file, result = tmp_path / "eval/base/one.jsonl", tmp_path / "eval/base/one.json"
    good = file.read_bytes()
    for spoil in (
        partial(file.write_bytes, good[:100]),
        partial(file.write_bytes, good.replace(b'"rouge1": ', b'"rouge1": 1', 1)),
        partial(result.write_text, "{"),
        result.unlink,
    ):
        generated()
        spoil()
        assert score()["rougeL"] == first["rougeL"]
        assert generated() == [7]
        assert file.read_bytes() == good


def test_other_weights_or_settings_are_scored_again(model, score, config, generated, monkeypatch):
    def redone():
        score()
        return {{7: "one", 3: "two"}[count] for count in generated()}

    assert redone() == {"one", "two"}
    assert redone() == set()
    config.batch_size = 2  # in 16 bits another batch size rounds differently
    assert redone() == {"one", "two"}
    config.tasks["two"].max_new_tokens = 4
    assert redone() == {"two"}
    config.max_prompt_tokens = 255
    assert redone() == {"one", "two"}
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    digests = {weights_digest(model), weights_digest(get_peft_model(model, adapter))}
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert len(digests | {weights_digest(model)}) == 3
    assert redone() == {"one", "two"}
    monkeypatch.setattr(scoring, "VERSION", scoring.VERSION + 1)
    assert redone() == {"one", "two"}


def test_the_base_model_is_scored_once_for_all_runs(model, score, config, tokenizer, tmp_path, generated, monkeypatch):
    monkeypatch.setattr(model, "generation_config", deepcopy(model.generation_config))
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template)

    def redone(folder, stage="base"):
        score(tmp_path / folder, stage, tmp_path / "shared")
        return generated()

    assert redone("first") == [7, 3]
    assert redone("second") == []
    made = [(tmp_path / name / "eval/base/one.jsonl").read_bytes() for name in ("first", "second")]
    assert made[0] == made[1]
    assert redone("first", "tuned") == [7, 3], "a tuned model is the run's own"
    for kept in (tmp_path / "shared" / "base_scores").glob("*/scores.jsonl"):
        kept.write_text("damaged")
    assert redone("third") == [7, 3]
    config.tasks["one"].cluster = "id"
    assert redone("fourth") == [7], "lines hold the cluster"
    config.tasks["other"] = config.tasks.pop("two")
    assert redone("renamed") == [], "the same examples under another name"
    model.generation_config.max_new_tokens = 7
    assert redone("settings") == [7, 3], "equal weights with other settings"
    tokenizer.chat_template += "{# another #}"
    assert redone("fifth") == [7, 3]


def test_a_limit_and_truncated_prompts_are_reported(score, config, caplog):
    config.limit = 5
    config.tasks["two"].prompt = "word " * 300 + "{input}"
    scores = score()
    assert scores["limited"] is True
    assert "LIMIT: only some examples are scored (one 5); do not report these scores" in caplog.text
    assert scores["tasks"]["two"]["shortened"] == 3
    assert "two: 3 of 3 prompts truncated to eval.max_prompt_tokens=256" in caplog.text


def test_scores_of_an_older_version_get_their_nll_when_they_are_scored_again(score, config, tmp_path, generated):
    config.nll = False
    older = score()
    assert "nll" not in older
    assert "nll" not in rows_of(tmp_path)[0]["scores"]
    generated()
    assert score() == older
    assert generated() == []
    config.nll = True
    found = score()
    assert generated() == [7, 3]
    assert {kind: found[kind] for kind in TYPES} == {kind: older[kind] for kind in TYPES}
    config.nll = False  # what is there is reused
    assert score() == found
