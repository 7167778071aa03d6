"""Which checkpoint is whole; damaged newer ones are deleted."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tometune.training.checkpoints import FILES, STATE, WEIGHTS, last_checkpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = WEIGHTS[-1]


def checkpoint(folder: Path, step: int, weights: str = WEIGHTS[0]) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in (*FILES, weights, "rng_state.pth", *(SHARDS if weights == INDEX else ())):
        if name.endswith((".pt", ".pth")):
            torch.save({"state": torch.zeros(100)}, made / name)
        elif name.endswith(".safetensors"):
            save_file({"weight": np.zeros(100)}, made / name)
        else:
            (made / name).write_text("{}")
    (made / STATE).write_text(json.dumps({"global_step": step}))
    if weights == INDEX:
        (made / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}))
    return made


def test_the_newest_is_found_by_number_and_others_are_left_alone(tmp_path):
    assert last_checkpoint(tmp_path) is last_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 8):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / STATE).unlink()
    (tmp_path / "checkpoint-mine").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("weights", WEIGHTS)
def test_an_adapter_or_a_whole_model_is_complete_with_the_states_of_all_processes(tmp_path, weights):
    made = checkpoint(tmp_path, 2, weights)
    (made / "rng_state.pth").rename(made / "rng_state_0.pth")
    torch.save({}, made / "rng_state_1.pth")
    assert last_checkpoint(tmp_path) == made


DAMAGED = product([*FILES, INDEX, "rng_state.pth", *SHARDS], ("missing", "empty", "half", "random"))
OTHER_STEPS = product([STATE], ("[]", "{}", '{"global_step": 3}'))


@pytest.mark.parametrize(("name", "damage"), [*DAMAGED, *OTHER_STEPS])
def test_one_with_a_damaged_file_or_the_state_of_another_step_is_deleted(tmp_path, name, damage, caplog):
    whole, broken = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, INDEX)
    content = (broken / name).read_bytes()
    contents = {"empty": b"", "half": content[: len(content) // 2], "random": bytes(reversed(range(256)))}
    (broken / name).write_bytes(contents.get(damage, damage.encode()))
    if damage == "missing":
        (broken / name).unlink()
    assert last_checkpoint(tmp_path) == whole
    assert not broken.exists()
    assert "checkpoint-4 is damaged (" in caplog.text
