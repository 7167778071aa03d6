"""Fixtures shared by all rooms: a clean environment, a hub on localhost, verbs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.hub import Hub

OURS = ("HF_", "HUGGINGFACE_", "WANDB_", "TRACKIO_", "TRANSFORMERS_", "TOMETUNE_", "HYDRA_")
"""Prefixes of environment variables that change what a run does; none of them reaches a test by chance."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(home: Path) -> dict[str, str]:
    """Environment for a subprocess: no key, no netrc, no hub, every cache under `home`."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens there: a test that needs the hub asks for one
        "TOMETUNE_CACHE": str(home / "tometune"),
    }


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    """Environment with its home under `tmp_path`."""
    return environment(tmp_path / "home")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty hub on localhost; `hub.env(home)` points a subprocess at it."""
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def run_python(clean_env: dict[str, str], tmp_path: Path) -> Run:
    """Return a function that runs Python with these arguments in the clean environment, in `tmp_path`."""

    def run(
        *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = tmp_path, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            env={**clean_env, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def run_verb(run_python: Run) -> Run:
    """Return a function that runs `python -m tometune.VERB override…` in the clean environment, in `tmp_path`."""

    def run(verb: str, *overrides: str, **options: object) -> "subprocess.CompletedProcess[str]":
        return run_python("-m", f"tometune.{verb}", *overrides, **options)

    return run
