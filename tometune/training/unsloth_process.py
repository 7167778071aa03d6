"""Training under Unsloth, in a process of its own: importing Unsloth changes transformers, TRL and PEFT everywhere.

The parent starts this module as `python -m tometune.training.unsloth_process CACHE FD`, early, because the import takes
half a minute. When the training begins, it sends the `TrainingInputs` through the connection behind the file
descriptor. It receives ("log", metrics, step), and then ("result", record) or ("error", exception).

Nothing imported at the top of this file may import torch, transformers, trl or peft: Unsloth has to be first.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.common.process import Stopped, stop_signals
from tometune.common.progress import StderrHandler, log_file
from tometune.models import unsloth_backend

if TYPE_CHECKING:
    from tometune.training.batches import TrainingInputs
    from tometune.training.metrics import OnLog


class UnslothProcess:
    """The training process, seen from its parent."""

    def __init__(self, process: "subprocess.Popen[bytes]", connection: "Connection[Any, Any]") -> None:
        self.process, self.connection = process, connection

    def fit(self, inputs: "TrainingInputs", on_log: "OnLog") -> dict[str, Any]:
        """Train in that process as `tometune.training.sft.fit` does, with the same result and errors.

        Raises:
            RuntimeError: the process crashed.
        """
        result: dict[str, Any] | None = None
        signals: list[int] = []

        def forward(number: int, _: object) -> None:
            signals.append(number)
            self.process.send_signal(number)  # it finishes its step and saves a checkpoint

        with stop_signals(forward):
            with suppress(BrokenPipeError):  # it has failed already; the error can still be received
                self.connection.send(inputs)
            with suppress(EOFError, ConnectionResetError):
                while True:
                    kind, *content = self.connection.recv()
                    if kind == "error":
                        raise content[0]
                    if kind == "log":
                        on_log(*content)
                    else:
                        (result,) = content
            status = self.process.wait()
        if result is not None:
            return result
        if signals:
            raise Stopped(signals[-1])
        raise RuntimeError(f"the training process ended with status {status}; its output is above")


@contextmanager
def unsloth_process(cache: Path) -> Iterator[UnslothProcess]:
    """Start the process, which begins to import Unsloth; it ends with the body at the latest."""
    ours, theirs = Pipe()
    process = subprocess.Popen(  # noqa: S603 -- this program
        [sys.executable, "-m", "tometune.training.unsloth_process", str(cache), str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # the verb's own stdout is its result
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    try:
        yield UnslothProcess(process, ours)
    finally:
        ours.close()  # it ends at once if it still trains
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Import Unsloth, wait for the inputs, train, and send back the result."""
    cache, connection = Path(sys.argv[1]), Connection(int(sys.argv[2]))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[StderrHandler()])
    logging.getLogger("tometune").setLevel(logging.INFO)
    with stop_signals():
        try:
            unsloth_backend.prepare(cache)
            inputs = connection.recv()
            threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
            with log_file(inputs.folder / "train.log"), unsloth_backend.quiet():
                connection.send(("result", _train(inputs, lambda *logged: connection.send(("log", *logged)))))
        except EOFError:  # the parent ended before its training began
            return
        except (UserError, SaveError) as error:
            kind = UserError if isinstance(error, UserError) else SaveError
            connection.send(("error", kind(str(error))))
            sys.exit(2 if kind is UserError else 1)
        except KeyboardInterrupt:  # the parent reports it
            sys.exit(130)


def _train(inputs: "TrainingInputs", on_log: "OnLog") -> dict[str, Any]:
    from tometune.common.seeding import seed_everything, use_deterministic_kernels
    from tometune.models.tokenizer import load_tokenizer
    from tometune.training.sft import fit

    tokenizer = load_tokenizer(inputs.source)
    seed_everything(inputs.seeds.adapter)
    use_deterministic_kernels(inputs.trainer.deterministic)
    model = unsloth_backend.load(inputs.source, inputs.trainer.max_length, full=not inputs.lora.enabled)
    if inputs.lora.enabled:
        model = unsloth_backend.add_adapter(model, inputs.lora, inputs.seeds.adapter)
    return fit(model, tokenizer, inputs, on_log, unsloth=True)


def _end_with_parent(connection: "Connection[Any, Any]") -> None:
    """Exit at once when the parent has ended and closed the connection: another process may take over the run."""
    connection.poll(None)
    os._exit(1)


if __name__ == "__main__":
    main()
