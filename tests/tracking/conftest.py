"""Tracked runs in processes of their own, and offline runs of W&B, read back with its own `wandb leet inspect`."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.whole import environment
from tometune.tracking.tracker import program

CHECKOUT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 3
DOWN = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
ID = "tiny-mix_1k-s0-abcdef01"
WANDB = program("wandb")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "run"


def track_in(
    place: Path, first_step: int = 0, env: dict[str, str] | None = None, **choice: object
) -> "subprocess.CompletedProcess[str]":
    """Track a run of three steps in a place with a home of its own."""
    command = [sys.executable, "-m", "tests.tracking.track", str(place / "outputs" / "run"), str(first_step)]
    env = {**environment(place / "home"), "PYTHONPATH": str(CHECKOUT), **(env or {})}
    command.append(json.dumps(choice))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=place)


@pytest.fixture
def track(tmp_path: Path) -> "Callable[..., subprocess.CompletedProcess[str]]":
    return partial(track_in, tmp_path)


def inspect(*arguments: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in inspect(str(folder)).splitlines()]


def the_folder(folder: Path) -> Path:
    [found] = folder.glob("wandb/offline-run-*")
    return found
