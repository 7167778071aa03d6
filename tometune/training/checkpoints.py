"""Checkpoints: which one is whole, and what a run broken off goes on from."""

import errno
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

STATE = "trainer_state.json"
"""Written last by transformers' Trainer: a checkpoint that has it, whole, is whole."""

METER = "meter.json"
"""Seconds and tokens up to the checkpoint."""

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", METER, STATE)


class SaveError(RuntimeError):
    """A checkpoint or the adapter could not be written; what was saved before is still valid."""


class Interrupted(SystemExit):
    """Training was told to stop (SIGTERM): a checkpoint is saved, and the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(143)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint under `folder`; broken ones that are newer are deleted.

    A kill in the middle of saving leaves a checkpoint without some of its files, or with a half of one.
    """
    found = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in found:
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
    if not all((checkpoint / name).exists() for name in FILES) or not list(checkpoint.glob("rng_state*.pth")):
        return False
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return bool(state["global_step"] == step_of(checkpoint))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into a `SaveError` of one line; libraries report it in several ways."""
    try:
        yield
    except Exception as error:
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
        if not full and "enforce fail at inline_container" not in str(error):  # torch.save's way of saying it
            raise
        raise SaveError(
            f"{folder}: no room left on the disk; what was saved before is valid: free some room and run the same "
            "command again, it goes on from there"
        ) from error
