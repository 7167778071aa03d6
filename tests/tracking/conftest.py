"""A tracked run in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run's folder."""
    return tmp_path / "outputs" / "run"


def start(folder: Path, env: dict[str, str], choice: dict) -> subprocess.CompletedProcess[str]:
    """Track a run of three steps in a process of its own."""
    command = [sys.executable, "-m", "tests.tracking.track", str(folder), "0", json.dumps(choice)]
    env = {**env, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=folder.parents[1])


@pytest.fixture
def track(run_python: Callable, folder: Path) -> Callable:
    """Return a function that tracks a run of three steps and gives back what the process said."""

    def run(
        first_step: int = 0, env: dict[str, str] | None = None, **choice: object
    ) -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "tests.tracking.track", str(folder), str(first_step), json.dumps(choice)]
        return run_python(*arguments, env={"PYTHONPATH": str(CHECKOUT), **(env or {})}, timeout=120)

    return run
