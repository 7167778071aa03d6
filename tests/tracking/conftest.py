"""Tracked runs in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.whole import environment

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run's folder."""
    return tmp_path / "outputs" / "run"


def track_in(
    place: Path, first_step: int = 0, env: dict[str, str] | None = None, **choice: object
) -> subprocess.CompletedProcess[str]:
    """Track a run of three steps in a place with a home of its own."""
    command = [sys.executable, "-m", "tests.tracking.track", str(place / "outputs" / "run"), str(first_step)]
    env = {**environment(place / "home"), "PYTHONPATH": str(CHECKOUT), **(env or {})}
    command.append(json.dumps(choice))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=place)


@pytest.fixture
def track(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `track_in` for this test's folder."""
    return lambda *arguments, **options: track_in(tmp_path, *arguments, **options)
