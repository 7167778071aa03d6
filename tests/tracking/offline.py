"""Offline runs of W&B, read back with its own `wandb leet inspect`."""

import json
import subprocess
import sys
from pathlib import Path

from tometune.tracking.tracker import program

KEY = "0123456789abcdef" * 3
DOWN = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
ID = "tiny-mix_1k-s0-abcdef01"
WANDB = program("wandb")


def inspect(*arguments: str) -> str:
    """Return what `wandb leet inspect --json` prints."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(folder: Path) -> list[dict]:
    """Return the records of an offline run."""
    return [json.loads(line) for line in inspect(str(folder)).splitlines()]


def the_folder(folder: Path) -> Path:
    """Return the only folder of an offline run."""
    [found] = folder.glob("wandb/offline-run-*")
    return found
