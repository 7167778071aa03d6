"""A GPU that runs out of memory although the micro-batch was measured to fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from tests.training.conftest import Train, settings
from tometune.common.errors import UserError


def test_out_of_memory_in_training_goes_on_at_half_the_micro_batch(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both before the first checkpoint, where all begins anew, and after one, from which it goes on."""
    unbroken = train(tmp_path / "unbroken", settings(conversations_per_step=4, micro_batch=2))
    step = Trainer.training_step
    for place in (1, 4):
        calls = iter(range(1, 100))

        def out_of_memory(self: Any, model: Any, inputs: Any, *rest: Any, place: int = place, **named: Any) -> Any:
            if len(inputs["input_ids"]) == 4 and next(calls) == place:  # noqa: B023 -- called within the loop
                raise torch.OutOfMemoryError
            return step(self, model, inputs, *rest, **named)

        monkeypatch.setattr(Trainer, "training_step", out_of_memory)
        fitted = train(tmp_path / f"at {place}", settings(conversations_per_step=4, micro_batch=4))
        assert (fitted.result.micro_batch, fitted.result.effective_batch, fitted.result.steps) == (2, 4, 6)
        assert "out of memory; once more with trainer.micro_batch=2, same steps" in caplog.text
        for mine, theirs in zip(fitted.curve, unbroken.curve, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_out_of_memory_twice_is_one_line(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "training_step", out_of_memory)
    with pytest.raises(UserError, match=r"^trainer\.micro_batch=2: the GPU ran out of memory while training; set"):
        train(tmp_path, settings(conversations_per_step=4, micro_batch=4, gradient_checkpointing=False))
