"""The meter and the curves."""

import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tometune.common.errors import UserError
from tometune.training.metrics import Curves, Meter, Totals, peak_memory_bytes
from tometune.training.trainer import StepCallback

PADDED = {
    "input_ids": torch.zeros(2, 5, dtype=torch.long),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    "labels": torch.tensor([[-100, -100, 3, 4, 5], [-100, 3, -100, -100, -100]]),
}
PACKED = {name: value[:1] for name, value in PADDED.items() if name != "attention_mask"}


@pytest.mark.parametrize(
    ("batch", "processes", "expected"), [(PADDED, 1, (7, 10, 4)), (PACKED, 1, (5, 5, 3)), (PADDED, 4, (28, 40, 16))]
)
def test_tokens_padding_and_labels_are_counted(batch, processes, expected):
    meter = Meter()
    meter.count(batch, lambda counts: counts * processes)
    assert (meter.totals.tokens, meter.totals.padded_tokens, meter.totals.trained_tokens) == expected


def test_a_resumed_meter_continues_and_its_first_rate_is_of_this_attempt(tmp_path):
    meter = Meter(Totals(seconds=100.0, tokens=1000, padded_tokens=2000, trained_tokens=300))
    meter.count(PADDED, lambda counts: counts)
    meter.save(tmp_path)
    again = Meter.load(tmp_path)
    assert again.totals == meter.totals
    again.start()
    time.sleep(0.01)
    again.count(PADDED, lambda counts: counts)
    rates = again.rates()
    assert 0 < rates["tokens_per_second"] <= 7 / 0.01
    assert rates["padded_tokens_per_second"] / rates["tokens_per_second"] == pytest.approx(10 / 7)
    assert again.totals.seconds > 100
    assert again.rates()["tokens_per_second"] == 0, "since the last call"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about the process, not a GPU")
@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, platform, unit):
    monkeypatch.setattr("sys.platform", platform)
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert peak_memory_bytes() == pytest.approx(expected, rel=0.05)


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    """Curves whose listener appends to `logged`."""
    made = Curves(tmp_path / "metrics.jsonl", Meter(), lambda metrics, step: made.logged.append((metrics, step)))
    made.logged = []
    return made


def lines(curves: Curves) -> list[dict[str, float]]:
    return [json.loads(line) for line in curves.path.read_text().splitlines()]


def test_a_log_becomes_a_line_and_a_point(curves):
    curves.add({"loss": 2.5, "learning_rate": 1e-4, "mean_token_accuracy": 0.5, "num_tokens": 7}, 3)
    curves.add({"train_loss": 2.5, "train_runtime": 1.0}, 3)  # the summary at the end is not a point
    (line,) = lines(curves)
    assert (line["step"], line["loss"], line["token_accuracy"]) == (3, 2.5, 0.5)
    assert {"tokens_per_second", "padded_tokens_per_second", "peak_memory_gb"} <= line.keys()
    assert "num_tokens" not in line
    assert curves.logged == [({f"train/{name}": value for name, value in line.items() if name != "step"}, 3)]
    assert curves.last_loss == 2.5


def test_rewind_removes_lines_after_the_checkpoint_and_lines_cut_short(curves):
    for half in ("", '{"step": 3, "lo', '{"loss": 1.0}', "3"):
        for step in range(1, 6):
            curves.add({"loss": float(step)}, step)
        with curves.path.open("a") as file:
            file.write(half)
        curves.rewind(3)
        assert [line["step"] for line in lines(curves)] == [1, 2, 3]
        assert curves.last_loss == 3.0
        curves.add({"loss": 4.5}, 4)
        assert [line["loss"] for line in lines(curves)] == [1.0, 2.0, 3.0, 4.5]
        assert [path.name for path in curves.path.parent.iterdir()] == ["metrics.jsonl"]
        curves.rewind(0)
        assert lines(curves) == []


def test_a_checkpoint_brings_back_lines_that_were_lost(curves, tmp_path):
    for step in range(1, 5):
        curves.add({"loss": float(step)}, step)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    curves.save(checkpoint)
    for damage in (curves.path.unlink, lambda: curves.path.write_bytes(b"\xff\n")):
        damage()
        curves.rewind(3, checkpoint)
        assert [line["step"] for line in lines(curves)] == [1, 2, 3]


def test_skipped_steps_are_counted_and_too_many_stop_the_run(curves):
    """As fp16's scaler skips them: the loss is finite, the norm of the gradients is not."""
    callback, state, control = StepCallback(curves.meter), SimpleNamespace(max_steps=1000), SimpleNamespace()

    def step(number: int, skipped: bool) -> None:
        state.global_step = number
        callback.on_step_end(
            SimpleNamespace(eval_steps=None), state, control, optimizer=SimpleNamespace(step_was_skipped=skipped)
        )

    curves.skips_steps = True
    curves.add({"loss": 1.0, "grad_norm": float("nan")}, 1)
    assert "grad_norm" not in lines(curves)[0]
    for number in range(1, 201):
        step(number, skipped=number <= 40 and number % 2 == 0)
    assert curves.meter.totals.skipped_steps == 20
    for number in range(201, 223):
        step(number, skipped=True)
    with pytest.raises(UserError, match=r"^model\.precision=fp16: 43 of 223 steps were skipped"):
        step(223, skipped=True)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("logs", "name"), [({"loss": None}, "loss"), ({"loss": 1.0, "grad_norm": None}, "norm of the gradients")]
)
def test_a_loss_or_gradients_that_are_not_finite_stop_the_run(curves, number, logs, name):
    line = rf"trainer\.learning_rate: the {name} became (nan|inf) at step 7; lower it"
    with pytest.raises(UserError, match=line):
        curves.add({key: number if value is None else value for key, value in logs.items()}, 7)
    assert not curves.path.exists()
