"""Runs of `train`, each a fork of this process, which did the imports; a signal can come at an exact moment.

Reads one request a line, `{"moment": ["MODULE:NAME", 3, "SIGKILL"], "overrides": […]}`: the signal comes as NAME is
called for the third time; a moment of null lets the run be. With `"seconds": 1.5` SIGKILL comes after that time,
wherever the run is. Answers one line, `{"status": …, "stderr": "…"}`.
"""

import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time

HEAVY = tuple(
    f"tometune.{name}"
    for name in ("training.sft", "evaluation.scoring", "evaluation.rouge", "data.tokens", "models.load")
)


def main() -> None:
    from tometune.train import main as train

    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as stderr:
            child = os.fork()
            if child == 0:
                os.dup2(stderr.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                sys.argv = ["train", *request["overrides"]]
                if request["moment"]:
                    arm(*request["moment"])
                os._exit(status_of(train))
            if request.get("seconds"):
                kill_after(child, request["seconds"])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            stderr.seek(0)
            print(json.dumps({"status": status, "stderr": stderr.read()}), flush=True)


def kill_after(child: int, seconds: float) -> None:
    """Kill a child unless it ends before; it is left to be waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)


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
