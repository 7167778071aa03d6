"""Runs of `train`, each a fork of this process, which did the imports; a signal can come at an exact moment.

Reads one request a line, `{"moment": ["MODULE:NAME", 3, "SIGKILL"], "overrides": […]}`: the signal comes as NAME is
called for the third time; a moment of null lets the run be. With `"kill": ["FOLDER", 5, 0.1]` SIGKILL comes a tenth of
a second after the fifth thing that is new in a sweep's folder (see `progress`), wherever the run is by then. Answers
one line, `{"status": …, "stderr": "…"}`.
"""

import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

HEAVY = tuple(
    f"tometune.{name}"
    for name in ("training.sft", "evaluation.scoring", "evaluation.rouge", "data.tokens", "models.load")
)

SIGNS = ("sweep.json", "*/run.json", "*/eval/*/*.jsonl", "*/checkpoints/checkpoint-*")


def main() -> None:
    from tometune.train import main as train

    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as stderr:
            before = progress(Path(request["kill"][0])) if request["kill"] else set()
            child = os.fork()
            if child == 0:
                os.dup2(stderr.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                sys.argv = ["train", *request["overrides"]]
                if request["moment"]:
                    arm(*request["moment"])
                os._exit(status_of(train))
            if request["kill"]:
                kill(child, before, *request["kill"])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            stderr.seek(0)
            print(json.dumps({"status": status, "stderr": stderr.read()}), flush=True)


def kill(child: int, before: set[str], folder: str, events: int, delay: float) -> None:
    """Kill a child at a moment of its progress, unless it ends before; it is left to be waited for."""
    while len(progress(Path(folder)) - before) < events:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)  # one that has ended keeps its own status


def progress(folder: Path) -> set[str]:
    """Return how far a sweep is by what lies in its folder: records, answers, checkpoints, and each line of a curve."""
    found = {str(path.relative_to(folder)) for pattern in SIGNS for path in folder.glob(pattern)}
    for path in folder.glob("*/metrics.jsonl"):
        lines = path.read_bytes().count(b"\n")
        found |= {f"{path.relative_to(folder)}:{number}" for number in range(lines)}
    return found


def arm(place: str, count: int, name: str) -> None:
    """Put a function in the place of another that is the same but for the signal."""
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    real = getattr(owner, attribute)
    calls = 0

    @functools.wraps(real)
    def dying(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.Signals[name])
        return real(*arguments, **keywords)

    setattr(owner, attribute, dying)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored


def status_of(train) -> int:
    """Return what the interpreter would exit with."""
    try:
        train()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
