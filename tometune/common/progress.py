"""Logs on stderr and in the run's folder; progress of long work as a bar, or as lines in the log without a terminal."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)

LOG_EVERY = 30  # seconds between lines in the log


class Bar:
    """How much of some work is done."""

    def __init__(self, description: str, total: int | None) -> None:
        """Make the bar, which stays invisible until the work advances: a download shows a bar of its own."""
        from rich import progress as parts
        from rich.console import Console

        console = Console(stderr=True)
        columns = (parts.TextColumn("{task.description}"), parts.BarColumn(), parts.MofNCompleteColumn())
        more = (parts.TextColumn("{task.fields[note]}"), parts.TimeElapsedColumn(), parts.TimeRemainingColumn())
        self.visible = console.is_terminal
        self.rich = parts.Progress(*columns, *more, console=console, disable=not self.visible, transient=True)
        self.task = self.rich.add_task(description, total=total, note="")
        self.logged = time.monotonic()

    def __call__(self, count: int) -> None:
        self.set(int(self.rich.tasks[self.task].completed) + count)

    def set(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set how much is done, and optionally of how much, and a note next to it, e.g. the loss."""
        self.rich.start()
        self.rich.update(self.task, completed=done, total=total, note=note)
        if not self.visible and time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            state = self.rich.tasks[self.task]
            log.info("%s: %s%s", state.description, f"{done:,}", f" of {int(state.total):,}" if state.total else "")


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Bar]:
    """Yield a bar; call it with each amount of work that is done, or `set` the sum. `total` is the whole, if known."""
    bar = Bar(description, total)
    try:
        yield bar
    finally:
        bar.rich.stop()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the log of this process to a file while the body runs; a file that cannot be opened is one warning."""
    try:
        handler = QuietFileHandler(path, encoding="utf-8")
    except PermissionError as error:
        log.warning("%s: no log file (%s)", path, error.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # the disk is full
            handler.close()


class QuietFileHandler(logging.FileHandler):
    """A log file that a full disk cannot break: logging would print a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name logging calls
        """Drop the line; stderr has it too."""


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which rich replaces while a bar is shown; logging's own handler keeps one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not StreamHandler's, which sets the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr
