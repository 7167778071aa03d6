"""Training in a process of its own, as Unsloth wants it: start early, say when, follow, and bring the result back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.common.signals import Stopped, told_to_stop
from tometune.training.curves import OnLog
from tometune.training.worker import GO


class WorkerError(RuntimeError):
    """The training's process ended without a word; what it printed is above."""


class Apart:
    """A worker: it imports while other things are done, and trains when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]", pipe: int) -> None:
        self.process = process
        self.pipe = pipe

    def fit(self, folder: Path, on_log: OnLog) -> dict[str, Any]:
        """Let it train, and return what run.json says under `train`.

        Args:
            folder: of the run, with its config.yaml.
            on_log: takes the metrics of each logging step.

        Raises:
            Stopped: SIGTERM or SIGHUP came, and a checkpoint was saved.
            SaveError: the disk is full.
            UserError: the model, the adapter or the machine does not allow it, or the loss is no longer a number.
            WorkerError: it crashed.
        """
        assert self.process.stdin is not None
        trained: dict[str, Any] | None = None
        heard: list[int] = []

        def pass_on(number: int, _: object) -> None:
            heard.append(number)
            self.process.send_signal(number)  # it finishes its step and saves

        with told_to_stop(pass_on):
            with suppress(BrokenPipeError):  # it ended already, and says why
                self.process.stdin.write(f"{GO} {folder.absolute()}\n")
                self.process.stdin.flush()
            with os.fdopen(self.pipe, encoding="utf-8") as messages:
                for line in messages:
                    message = json.loads(line)
                    if "wrong" in message:
                        raise UserError(message["wrong"])
                    if "full" in message:
                        raise SaveError(message["full"])
                    if "log" in message:
                        on_log(message["log"], message["step"])
                    trained = message.get("trained", trained)
            status = self.process.wait()
        if heard and trained is None:
            raise Stopped(heard[-1])
        if trained is None:
            raise WorkerError(f"the training's process ended with status {status}; what it printed is above")
        return trained


@contextmanager
def worker(cache: Path) -> Iterator[Apart]:
    """Start a worker, which begins to import; it ends with the body at the latest.

    Args:
        cache: gets the code that Unsloth compiles.
    """
    ours, theirs = os.pipe()
    process = subprocess.Popen(  # noqa: S603 -- this program
        [sys.executable, "-m", "tometune.training.worker", str(cache), str(theirs)],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,  # what the verb prints on stdout is its result
        text=True,
        pass_fds=(theirs,),
    )
    os.close(theirs)
    try:
        yield Apart(process, ours)
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # it ends at once if it is still at it
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
