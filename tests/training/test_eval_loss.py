"""`eval/loss`: what it is, when it is computed, and that it changes nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.conftest import packs, settings
from tometune.config.eval import TaskConfig
from tometune.data.encoder import IGNORE
from tometune.evaluation.likelihood import LOSS_ROWS, loss_rows
from tometune.evaluation.tasks import Example, Task
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    **{"padded": {}, "packed": packs(64, 2), "nll": {"loss_type": "nll"}, "dft": packs(64, 2) | {"loss_type": "dft"}}
}


def task(name: str, count: int) -> Task:
    examples = [
        Example(str(n), [{"role": "user", "content": f"{name} {n}"}], [f"é {n} " + "on and on " * (n % 7), "no"], [])
        for n in range(count)
    ]
    return Task(name, TaskConfig(), examples, limited=False, digest="")


@pytest.fixture(scope="module")
def tokenizer(cache: Path) -> Any:
    return load_tokenizer(locate(settings().model, cache))


def by_hand(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean cross entropy per token with a label, one row at a time."""
    losses = []
    model.eval()
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        kept = labels[1:] != IGNORE
        losses.append(cross_entropy(logits[kept], labels[1:][kept], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in ("padded", "nll") else ()) for name in SETTINGS]
)
def test_it_changes_no_byte_and_is_the_mean_over_trained_tokens(train, tokenizer, tmp_path, name):
    """Dropout would notice a random stream that advanced."""
    logged: list[tuple[dict[str, float], int]] = []
    rows = loss_rows([task("question", 30)], tokenizer, 64)
    found = []
    for eval_steps in (None, 4):
        config = settings(logging_steps=3, eval_steps=eval_steps, **SETTINGS[name])
        config.lora.lora_dropout = 0.3
        folder = tmp_path / str(eval_steps)
        found.append(train(folder, config, lambda *line: logged.append(line), rows if eval_steps else ()))
    without, with_loss = found
    assert with_loss.adapter == without.adapter
    assert not any("eval/loss" in line for line in without.curve)
    assert [line["step"] for line in with_loss.curve if "eval/loss" in line] == [4, 6], "and after the last step"
    assert all("loss" in line for line in with_loss.curve), "readers of older versions need it"
    (last,) = [metrics for metrics, step in logged if step == 6 and "eval/loss" in metrics]
    assert last["eval/loss"] == with_loss.curve[-1]["eval/loss"]
    with torch.random.fork_rng():
        expected = by_hand(with_loss.trainer.model, rows)
    assert last["eval/loss"] == pytest.approx(expected, rel=1e-5)


def test_rows_without_an_answer_within_the_length_are_left_out(tokenizer, caplog):
    assert loss_rows([task("qa", 3)], tokenizer, 64)
    assert not caplog.records
    assert loss_rows([task("qa", 3)], tokenizer, 5) == []
    assert "eval/loss: off, because no answer begins within trainer.max_length=5" in caplog.text


def test_its_rows_are_held_out_ones_if_there_are_any(tokenizer):
    tasks = [task("qa", 150), task("held_out_base", 150), task("held_out_pool", 150)]
    rows = loss_rows(tasks, tokenizer, 64)
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    assert len(set(texts)) == LOSS_ROWS == 200
    assert not any("qa " in text for text in texts)
    assert 90 < sum("held_out_pool" in text for text in texts) < 110
    lengths = [len(row["labels"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    few = loss_rows(tasks[:1], tokenizer, 64)
    assert len(few) == 150
    trained = [token for token in few[-1]["labels"] if token != IGNORE]
    assert tokenizer.decode(trained).endswith("<|im_end|>"), "with the end of the turn, as in training"
