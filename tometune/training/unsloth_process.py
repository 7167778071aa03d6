"""Training in a process of its own, as Unsloth needs it."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.common.logs import StderrHandler, log_file
from tometune.common.signals import Stopped, stop_signals
from tometune.models import unsloth_backend
from tometune.runs.inputs import RunInputs
from tometune.runs.stored import stored_config

if TYPE_CHECKING:
    from tometune.training.metrics import OnLog


class WorkerError(RuntimeError):
    """The training's process ended without a word; what it printed is above."""


class Apart:
    """A worker: it imports while other things are done, and trains when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]", pipe: int) -> None:
        self.process = process
        self.pipe = pipe

    def fit(self, folder: Path, on_log: "OnLog") -> dict[str, Any]:
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

        with stop_signals(pass_on):
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
        [sys.executable, "-m", "tometune.training.unsloth_process", str(cache), str(theirs)],
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


GO = "go"
"""The line on stdin that begins the training, with the run's folder after it."""


def main() -> None:
    """Import Unsloth, wait for the word, train, and send what came of it through the pipe, a JSON object a line."""
    cache, pipe = Path(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[StderrHandler()])
    logging.getLogger("tometune").setLevel(logging.INFO)
    with stop_signals(), os.fdopen(pipe, "w", encoding="utf-8", buffering=1) as file:

        def send(**message: Any) -> None:
            file.write(json.dumps(message) + "\n")

        try:
            unsloth_backend.prepare(cache)
            word, _, folder = sys.stdin.readline().strip().partition(" ")
            if word != GO:
                return
            threading.Thread(target=_end_with_the_parent, daemon=True).start()
            with log_file(Path(folder) / "train.log"), unsloth_backend.quiet():
                send(trained=_train(Path(folder), lambda metrics, step: send(log=metrics, step=step)))
        except UserError as error:
            send(wrong=str(error))
            sys.exit(2)
        except SaveError as error:
            send(full=str(error))
            sys.exit(1)
        except KeyboardInterrupt:  # the parent says what there is to say
            sys.exit(130)


def _train(folder: Path, on_log: Any) -> dict[str, Any]:
    """Train the run of a folder; the data is in the cache, the adapter is the one that PEFT makes of the same seed."""
    from tometune.common.seeding import seed_everything
    from tometune.training.sft import fit

    config = stored_config(folder)
    inputs = RunInputs.resolve(config)
    seed_everything(config.seeds.adapter)
    whole = not config.lora.enabled
    model = unsloth_backend.load(inputs.model, config.trainer.max_length, whole)
    if not whole:
        model = unsloth_backend.add_adapter(model, config.lora, config.seeds.adapter)
    return asdict(fit(model, inputs.tokenizer, inputs.tokens, config, folder, on_log, inputs.cache, unsloth=True))


def _end_with_the_parent() -> None:
    """End at once when the parent has gone (its end of stdin closes): another may be about to take the run over."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
