import json
from pathlib import Path
from typing import Any

import pytest

from tometune.common.errors import UserError
from tometune.training.metrics import Curves, Meter


@pytest.fixture
def told() -> list[tuple[dict[str, float], int]]:
    return []


@pytest.fixture
def curves(tmp_path: Path, told: list[Any]) -> Curves:
    return Curves(tmp_path / "metrics.jsonl", Meter(), lambda metrics, step: told.append((metrics, step)))


def lines(curves: Curves) -> list[dict[str, float]]:
    return [json.loads(line) for line in curves.path.read_text().splitlines()]


def test_a_log_becomes_a_line_and_a_point(curves: Curves, told: list[Any]) -> None:
    curves.add({"loss": 2.5, "learning_rate": 1e-4, "mean_token_accuracy": 0.5, "num_tokens": 7}, 3)
    (line,) = lines(curves)
    assert (line["step"], line["loss"], line["token_accuracy"]) == (3, 2.5, 0.5)
    assert {"tokens_per_second", "padded_tokens_per_second", "peak_memory_gb"} <= line.keys()
    assert "num_tokens" not in line
    assert told == [({f"train/{name}": value for name, value in line.items() if name != "step"}, 3)]
    assert curves.last_loss == 2.5


def test_the_summary_at_the_end_is_no_point(curves: Curves, told: list[Any]) -> None:
    curves.add({"train_loss": 2.5, "train_runtime": 1.0}, 3)
    assert not told
    assert not curves.path.exists()


def test_rewind_forgets_the_steps_after_the_checkpoint(curves: Curves) -> None:
    for step in range(1, 6):
        curves.add({"loss": float(step)}, step)
    curves.rewind(3)
    assert [line["step"] for line in lines(curves)] == [1, 2, 3]
    assert curves.last_loss == 3.0
    curves.add({"loss": 4.5}, 4)
    assert [line["loss"] for line in lines(curves)] == [1.0, 2.0, 3.0, 4.5]
    assert [path.name for path in curves.path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("half", ['{"step": 3, "lo', '{"step"', "{", '{"loss": 1.0}', "3"])
def test_a_line_broken_off_is_forgotten(curves: Curves, half: str) -> None:
    for step in (1, 2):
        curves.add({"loss": float(step)}, step)
    with curves.path.open("a") as file:
        file.write(half)
    curves.rewind(2)
    assert [line["step"] for line in lines(curves)] == [1, 2]


def test_without_a_checkpoint_everything_is_forgotten(curves: Curves) -> None:
    curves.rewind(0)
    curves.add({"loss": 1.0}, 1)
    curves.rewind(0)
    assert lines(curves) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(curves: Curves, loss: float) -> None:
    with pytest.raises(UserError, match=r"trainer\.learning_rate: the loss became (nan|inf) at step 7; lower it"):
        curves.add({"loss": loss}, 7)
    assert not curves.path.exists()
