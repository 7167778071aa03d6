import json
import logging
from statistics import fmean

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tometune.config.eval import EvalConfig
from tometune.evaluation import scoring
from tometune.evaluation.scoring import Scorer, weights_digest
from tometune.evaluation.tasks import load_tasks

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


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stage(model, tokenizer, config, folder):
    return Scorer(tokenizer, load_tasks(config), config, folder, folder / "cache").stage("base", model)


@pytest.fixture
def generated(monkeypatch):
    """Numbers of conversations that were answered, by task in order."""
    counts, real = [], scoring.generate

    def counted(model, tokenizer, conversations, *arguments):
        counts.append(len(conversations))
        return real(model, tokenizer, conversations, *arguments)

    monkeypatch.setattr(scoring, "generate", counted)
    return counts


def test_files_and_means(model, tokenizer, config, tmp_path):
    scores = stage(model, tokenizer, config, tmp_path)
    rows = lines(tmp_path / "eval" / "base" / "one.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert rows[2]["prompt"] == "<|im_start|>user\nSay 2 words.<|im_end|>\n<|im_start|>assistant\n"
    assert rows[2]["references"] == ROWS[2]["references"]
    assert set(rows[0]) == {"id", "prompt", "prediction", "references", "scores", "tokens", "ended", "shortened"}
    assert scores["tasks"]["one"]["token_f1"] == pytest.approx(fmean(row["scores"]["token_f1"] for row in rows))
    for kind in TYPES:
        by_task = [fmean(r["scores"][kind] for r in lines(tmp_path / f"eval/base/{t}.jsonl")) for t in ("one", "two")]
        assert [scores["tasks"][task][kind] for task in ("one", "two")] == pytest.approx(by_task)
        assert scores[kind] == pytest.approx(fmean(by_task))
    assert "token_f1" not in scores
    assert [scores["tasks"][task]["examples"] for task in ("one", "two")] == [7, 3]
    assert scores["limited"] is False
    assert scores["tokens_per_second"] > 0
    json.dumps(scores)
    assert stage(model, tokenizer, config, tmp_path) == scores, "read again"


def test_a_model_in_training_mode_gets_the_same_scores(model, tokenizer, config, tmp_path):
    """Dropout is off while a stage is scored, and the mode is restored."""
    expected = stage(model, tokenizer, config, tmp_path / "eval")
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = stage(model.train(), tokenizer, config, tmp_path / "train")
    assert [found[kind] for kind in TYPES] == [expected[kind] for kind in TYPES]
    assert lines(tmp_path / "train/eval/base/one.jsonl") == lines(tmp_path / "eval/eval/base/one.jsonl")
    assert all(module.training for module in model.modules())
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()


SPOILERS = {
    "half": lambda folder: (folder / "one.jsonl").write_text((folder / "one.jsonl").read_text()[:100]),
    "one score": lambda folder: (folder / "one.jsonl").write_text(
        (folder / "one.jsonl").read_text().replace('"rouge1": ', '"rouge1": 1', 1)
    ),
    "broken result": lambda folder: (folder / "one.json").write_text("{"),
    "no result": lambda folder: (folder / "one.json").unlink(),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_broken_file_is_redone(model, tokenizer, config, tmp_path, spoil, generated):
    first = stage(model, tokenizer, config, tmp_path)
    folder = tmp_path / "eval" / "base"
    good = (folder / "one.jsonl").read_bytes()
    spoil(folder)
    assert stage(model, tokenizer, config, tmp_path)["rougeL"] == first["rougeL"]
    assert generated == [7, 3, 7]
    assert (folder / "one.jsonl").read_bytes() == good


def test_other_weights_or_settings_are_scored_again(model, tokenizer, config, tmp_path, generated):
    def redone():
        generated.clear()
        stage(model, tokenizer, config, tmp_path)
        return {{7: "one", 3: "two"}[count] for count in generated}

    assert redone() == {"one", "two"}
    assert redone() == set()
    config.batch_size = 2  # in 16 bits another batch size rounds differently
    assert redone() == {"one", "two"}
    config.tasks["two"].max_new_tokens = 4
    assert redone() == {"two"}
    config.max_prompt_tokens = 255
    assert redone() == {"one", "two"}
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert redone() == {"one", "two"}


def test_an_adapter_changes_the_digest_once_it_is_trained(model):
    before = weights_digest(model)
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    untrained = weights_digest(tuned)
    tuned(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.1).step()
    assert len({before, untrained, weights_digest(tuned)}) == 3


@pytest.mark.parametrize(
    ("wanted", "many", "compiles"), [("auto", 11, False), ("auto", 10, True), (True, 11, True), (False, 1, False)]
)
def test_many_answers_turn_compiling_on(model, tokenizer, config, tmp_path, monkeypatch, wanted, many, compiles):
    asked, engine_for = [], scoring.engine_for

    def watched(*arguments):
        asked.append(arguments[-1])
        return engine_for(*arguments)

    monkeypatch.setattr(scoring, "engine_for", watched)
    monkeypatch.setattr(scoring, "MANY", many)
    config.compile = wanted
    stage(model, tokenizer, config, tmp_path)
    assert asked == [compiles]


def test_engine_and_batch_size_are_recorded_with_the_scores(model, tokenizer, config, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config.batch_size = None
    scores = stage(model, tokenizer, config, tmp_path)
    assert {(task["engine"], task["batch_size"]) for task in scores["tasks"].values()} == {("transformers", 16)}
    key = json.loads((tmp_path / "eval/base/one.json").read_text())["key"]
    assert (key["engine"], key["batch_size"]) == ("transformers", 16)


def test_a_limit_and_truncated_prompts_are_reported(model, tokenizer, config, tmp_path, caplog):
    config.limit = 5
    config.tasks["two"].prompt = "word " * 300 + "{input}"
    with caplog.at_level(logging.WARNING):
        scores = stage(model, tokenizer, config, tmp_path)
    assert scores["limited"] is True
    assert "LIMIT: only some examples are scored (one 5); do not report these scores" in caplog.text
    assert scores["tasks"]["two"]["shortened"] == 3
    assert "two: 3 of 3 prompts truncated to eval.max_prompt_tokens=256" in caplog.text
