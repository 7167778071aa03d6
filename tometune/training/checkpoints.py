"""Checkpoints: which one is whole, and what a run broken off goes on from."""

import json
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

STATE = "trainer_state.json"
"""Written last by transformers' Trainer: a checkpoint that has it, whole, is whole."""

METER = "meter.json"
"""Seconds and tokens up to the checkpoint."""

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", METER, STATE)


class Interrupted(SystemExit):
    """Training was told to stop (SIGTERM): a checkpoint is saved, and the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(143)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint under `folder`; broken ones that are newer are deleted.

    A kill in the middle of saving leaves a checkpoint without some of its files, or with a half of one.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if _whole(checkpoint):
            return checkpoint
        log.warning("%s is not whole (broken off while it was saved); it is deleted", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    """Tell whether every file is there and the one written last can be read."""
    files = [*(checkpoint / name for name in FILES), *checkpoint.glob("rng_state*.pth")]
    # A power cut, other than a kill, can leave the names of files without their content.
    if len(files) == len(FILES) or not all(file.is_file() and file.stat().st_size for file in files):
        return False
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)
