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


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """An offline W&B run without a key: the current folder, what the process printed, and what it logged."""
    place = tmp_path_factory.mktemp("place")
    choice = json.dumps({"tags": ["first"], "entity": "someone"})
    command = [sys.executable, "-m", "tests.tracking.track", str(place / "outputs" / "run"), "0", choice]
    env = {**environment(place / "home"), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout), done.stderr


@pytest.fixture
def track(run_python: Callable, folder: Path) -> Callable:
    """Return a function that tracks a run of three steps and returns the completed process."""

    def run(
        first_step: int = 0, env: dict[str, str] | None = None, **choice: object
    ) -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "tests.tracking.track", str(folder), str(first_step), json.dumps(choice)]
        return run_python(*arguments, env={"PYTHONPATH": str(CHECKOUT), **(env or {})}, timeout=120)

    return run
