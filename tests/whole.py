"""Whole runs in processes of their own, in a folder that several tests share, and signals at exact moments."""

import atexit
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = ("HF_", "HUGGINGFACE_", "WANDB_", "TRACKIO_", "TRANSFORMERS_", "TOMETUNE_", "HYDRA_")
"""Prefixes of environment variables that change what a run does; none of them reaches a test by chance."""

LOGGED = re.compile(r"task \w+: |\d+ rows |data\.\w+: \d|data\.\w+: .*revision")
"""Lines of the log that may stand before an error."""

SERVER = Path(__file__).with_name("fork_server.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
"""Starts a module in two processes."""

Done = subprocess.CompletedProcess[str]
Moment = tuple[str, int, str]
"""A function as `module:name`, the number of its call, and the signal that comes then, or the error from then on."""

Kill = tuple[str, int, float]
"""A sweep's folder, how many new things must appear in it (`fork_server.progress`), and seconds after the last one."""

TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes", "started", "finished", "attempts", "reused", "phases")
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
        "OMP_NUM_THREADS": "1",  # as many workers as cores
    }


class ForkServer:
    """The process behind `tests/fork_server.py`: started with the first request, shared by the tests of one worker."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="tometune-tests-", ignore_cleanup_errors=True)
        self.env = environment(Path(self._home.name))

    @functools.cached_property
    def _process(self) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, str(SERVER)], env=self.env, text=True, **pipes)

    @staticmethod
    def takes(arguments: Sequence[str]) -> bool:
        """Tell whether these arguments are a verb, and can run in a fork: CUDA does not survive one."""
        verb = len(arguments) > 1 and arguments[0] == "-m" and arguments[1].startswith("tometune.")
        return verb and not Path("/dev/nvidiactl").exists()

    def run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        timeout: float = 300,
        moment: Moment | None = None,
        kill: Kill | None = None,
        permissions: bool = False,
    ) -> Done:
        """Run `python -m MODULE …` in a fork and return what `subprocess.run` would."""
        request = {
            **{"module": arguments[1], "arguments": list(map(str, arguments[2:])), "env": dict(env)},
            **{"folder": str(folder), "timeout": timeout, "moment": moment, "kill": kill},
            "permissions": permissions,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, answer["status"], answer["stdout"], answer["stderr"])

    def close(self) -> None:
        self._process.communicate()
        self._home.cleanup()


@functools.cache
def fork_server() -> ForkServer:
    """Return the fork server of this test worker."""
    made = ForkServer()
    atexit.register(made.close)
    return made


class Workplace:
    """A folder with a home, a cache and outputs; the commands of one user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = environment(folder / "home")

    def verb(self, name: str, *overrides: str, env: Mapping[str, str] | None = None, **options: Any) -> Done:
        """Run `python -m tometune.NAME override…`; see `run_python` for the options."""
        return self.python("-m", f"tometune.{name}", *overrides, env=env, **options)

    def train(self, *overrides: str, **options: Any) -> tuple[int, str]:
        """Run `train`; returns its exit status and stderr."""
        done = self.verb("train", *overrides, **options)
        return done.returncode, done.stderr

    def run_folder(self, outputs: str = "outputs") -> Path:
        (found,) = (self.folder / outputs).iterdir()
        return found

    def python(self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Done:
        return run_python(arguments, {**self.env, **(env or {})}, self.folder, **options)


def run_python(
    arguments: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    timeout: float = 300,
    fresh: bool = False,
    moment: Moment | None = None,
    kill: Kill | None = None,
    permissions: bool = False,
) -> Done:
    """Run Python with these arguments: a verb in a fork of the server where possible, else in a new process.

    A signal can come at an exact moment, or a kill at a point of a sweep's progress, and with
    `permissions` those of files count for root, too; that needs a fork.
    """
    if moment or kill or permissions or (not fresh and ForkServer.takes(arguments)):
        return fork_server().run(arguments, env, folder, timeout, moment, kill, permissions)
    return subprocess.run(
        [sys.executable, *arguments],
        **{"env": dict(env), "cwd": folder, "timeout": timeout},
        **{"capture_output": True, "text": True, "stdin": subprocess.DEVNULL},
    )


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def adapter_of(run: Path) -> bytes:
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
    return timeless(record_of(run)["eval"])


def answers_of(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("eval/*/*.jsonl"))}


def assert_one_line(done: Done, says: str) -> None:
    """Check that stderr ends in one line that says it, after nothing but the log."""
    *before, last = done.stderr.splitlines()
    assert re.search(says, last), done.stderr
    assert not [line for line in before if not LOGGED.match(line)], done.stderr
