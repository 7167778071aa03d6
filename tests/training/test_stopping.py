"""Trainings that are stopped and resumed end with the same adapter, bit for bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Fitted, Train, packs, settings, without_times
from tometune.common.signals import Stopped
from tometune.config.root import Config
from tometune.training.metrics import OnLog


def stop_at(step: int, number: signal.Signals = signal.SIGTERM) -> OnLog:
    """Return a listener that sends this process a signal when a step is logged."""

    def listen(_: dict[str, float], at: int) -> None:
        if at == step:
            os.kill(os.getpid(), number)

    return listen


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {},
    "packing": packs(96, 2) | {"max_steps": 5, "num_train_epochs": 9},
    "dropout and packing": packs(96, 2) | {"max_steps": 5, "num_train_epochs": 9},
    "accumulation": {"conversations_per_step": 3, "micro_batch": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "epochs": {"max_steps": None, "num_train_epochs": 2.0, "conversations_per_step": 6},
    "workers": {"dataloader_num_workers": 1},
}
BY_DEFAULT = [("plain", 3), ("dropout and packing", 1)]


def variant(name: str) -> Config:
    config = settings(**VARIANTS[name])
    config.lora.lora_dropout = 0.1 if "dropout" in name else 0.0
    return config


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(name, step, marks=() if (name, step) in BY_DEFAULT else pytest.mark.nightly)
        for name in VARIANTS
        for step in (1, 3)
    ],
)
def test_stopped_and_resumed_is_bit_for_bit_unbroken(
    plain: Fitted, train: Train, tmp_path: Path, name: str, step: int
) -> None:
    unbroken = plain if name == "plain" else train(tmp_path / "unbroken", variant(name))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "broken", variant(name), on_log=stop_at(step))
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    saved = {path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert f"checkpoint-{step + 1}" in saved, "the step after the signal is finished and saved"
    assert not (tmp_path / "broken" / "adapter").exists()

    resumed = train(tmp_path / "broken", variant(name))
    assert resumed.adapter == unbroken.adapter
    assert [without_times(line) for line in resumed.curve] == [without_times(line) for line in unbroken.curve]
    assert counts(resumed) == counts(unbroken)
    assert len(resumed.batches) < len(unbroken.batches)


def counts(fitted: Fitted) -> tuple[object, ...]:
    result = fitted.result
    return (
        *(result.steps, result.epochs, result.tokens, result.padded_tokens, result.trained_tokens),
        *(result.effective_batch, result.final_loss),
    )


@pytest.mark.parametrize(
    "length",
    [{"max_steps": 6}, pytest.param({"max_steps": None, "num_train_epochs": 1.0}, marks=pytest.mark.nightly)],
)
def test_interrupted_after_the_last_checkpoint_trains_no_further_step(
    train: Train, tmp_path: Path, length: dict[str, Any]
) -> None:
    whole = train(tmp_path, settings(**length))
    before, curve = whole.adapter, (tmp_path / "metrics.jsonl").read_bytes()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {f"checkpoint-{step}" for step in (whole.result.steps - 2, whole.result.steps)}, "save_total_limit=2"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / ".adapter.0123abcd.tmp").mkdir()  # as a kill leaves it
    again = train(tmp_path, settings(**length))
    assert again.adapter == before
    assert again.batches == []
    assert counts(again) == counts(whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve
    assert not list(tmp_path.glob(".adapter.*"))


def test_an_incomplete_checkpoint_is_made_again(plain: Fitted, train: Train, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, settings(), on_log=stop_at(4))
    newest = tmp_path / "checkpoints" / "checkpoint-5"
    text = (newest / "trainer_state.json").read_text()
    (newest / "trainer_state.json").write_text(text[: len(text) // 2])
    resumed = train(tmp_path, settings())
    assert len(resumed.batches) == 2, "it resumes from step 4"
    assert resumed.adapter == plain.adapter
