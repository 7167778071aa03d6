"""Trainings that are stopped and resumed end with the same adapter, bit for bit."""

import os
import signal

import pytest

from tests.training.conftest import packs, settings
from tometune.common.process import Stopped

CASES = [
    ("plain", 3, {}),
    ("dropout and packing", 1, packs(96, 2) | {"max_steps": 5, "num_train_epochs": 9}),
    *(
        pytest.param(name, 2, trainer, marks=pytest.mark.nightly)
        for name, trainer in {
            "accumulation": {"conversations_per_step": 3, "micro_batch": 1},
            "checkpointing": {"gradient_checkpointing": True},
            "epochs": {"max_steps": None, "num_train_epochs": 2.0, "conversations_per_step": 6},
            "workers": {"dataloader_num_workers": 1},
        }.items()
    ),
]
"""A name, the step in which the signal comes, and settings of the trainer."""


@pytest.mark.parametrize(("name", "step", "trainer"), CASES)
def test_stopped_and_resumed_is_bit_for_bit_unbroken(plain, train, tmp_path, name, step, trainer):
    def stop(_: dict[str, float], at: int) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    config = settings(**trainer)
    config.lora.lora_dropout = 0.1 if "dropout" in name else 0.0
    unbroken = plain if name == "plain" else train(tmp_path / "unbroken", config)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "broken", config, on_log=stop)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    saved = {path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert f"checkpoint-{step + 1}" in saved, "the step after the signal is finished and saved"
    assert not (tmp_path / "broken" / "adapter").exists()

    resumed = train(tmp_path / "broken", config)
    assert resumed.adapter == unbroken.adapter
    assert resumed.curve == unbroken.curve
    assert resumed.counts == unbroken.counts
    assert len(resumed.batches) < len(unbroken.batches)


def test_interrupted_after_the_last_checkpoint_trains_no_further_step(train, tmp_path):
    whole = train(tmp_path, settings())
    before, curve = whole.adapter, (tmp_path / "metrics.jsonl").read_bytes()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"checkpoint-4", "checkpoint-6"}, "save_total_limit=2"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / ".adapter.0123abcd.tmp").mkdir()  # as a kill leaves it
    again = train(tmp_path, settings())
    assert (again.adapter, again.batches, again.counts) == (before, [], whole.counts)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve
    assert not list(tmp_path.glob(".adapter.*"))
