"""Whole runs in processes of their own, in a folder that several tests share, and signals at exact moments."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OURS = ("HF_", "HUGGINGFACE_", "WANDB_", "TRACKIO_", "TRANSFORMERS_", "TOMETUNE_", "HYDRA_")
"""Prefixes of environment variables that change what a run does; none of them reaches a test by chance."""

LOGGED = re.compile(r"task \w+: |\d+ rows |data\.\w+: \d|data\.\w+: .*revision")
"""Lines of the log that may stand before an error."""

FORKS = Path(__file__).with_name("forks.py")
Done = "subprocess.CompletedProcess[str]"
Moment = tuple[str, int, str]
"""A function as `module:name`, the number of its call, and the signal that comes then."""

Kill = tuple[str, int, float]
"""A sweep's folder, the number of things that are new in it (`forks.progress`), and seconds after the last of them."""

TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes", "started", "finished", "attempts")
"""What run.json says of when, how fast and how often: two runs of the same content may differ in it, and in no more."""


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


class Workplace:
    """A folder with a home, a cache and outputs; the commands of one user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
        self._server: subprocess.Popen[str] | None = None

    def verb(self, name: str, *overrides: str, env: Mapping[str, str] | None = None) -> Done:
        """Run `python -m tometune.NAME override…`."""
        return self.python("-m", f"tometune.{name}", *overrides, env=env)

    def train(self, *overrides: str, moment: Moment | None = None, kill: Kill | None = None) -> tuple[int, str]:
        """Run `train` in a fork of a process that has imported everything; returns its exit status and stderr."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(FORKS)],
                env=self.env,
                cwd=self.folder,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"moment": moment, "kill": kill, "overrides": overrides}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["status"], answer["stderr"]

    def close(self) -> None:
        """Stop the process behind `train`."""
        if self._server is not None:
            self._server.communicate()

    def run_folder(self, outputs: str = "outputs") -> Path:
        """Return the folder of the only run."""
        (found,) = (self.folder / outputs).iterdir()
        return found

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> Done:
        """Run Python with these arguments."""
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self.env, **(env or {})},
            cwd=self.folder,
            timeout=300,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )


def record_of(run: Path) -> dict[str, Any]:
    """Read run.json."""
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def adapter_of(run: Path) -> bytes:
    """Read the adapter's weights."""
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def curve_of(run: Path) -> list[tuple[float, float]]:
    """Read step and loss of each line of metrics.jsonl."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values, at any depth, without `TIMES`."""
    kept = {name: value for name, value in values.items() if name not in TIMES}
    return {name: timeless(value) if isinstance(value, dict) else value for name, value in kept.items()}


def scores_of(run: Path) -> dict[str, Any]:
    """Read the scores without the times they took."""
    return timeless(record_of(run)["eval"])


def answers_of(run: Path) -> dict[str, str]:
    """Read every file of answers."""
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("eval/*/*.jsonl"))}


def assert_one_line(done: Done, says: str) -> None:
    """Check that stderr ends in one line that says it, after nothing but the log."""
    *before, last = done.stderr.splitlines()
    assert re.search(says, last), done.stderr
    assert not [line for line in before if not LOGGED.match(line)], done.stderr
