"""Progress of long work: a bar if stderr is a terminal, else a line in the log now and then."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

LOG_EVERY = 30
"""Seconds between lines in the log."""


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
        """Add to the work that is done."""
        self.set(int(self.rich.tasks[self.task].completed) + count)

    def set(self, done: int, total: int | None = None, description: str | None = None, note: str = "") -> None:
        """Set how much is done, and optionally of how much, of which work, and a note next to it, e.g. the loss."""
        self.rich.start()
        self.rich.update(self.task, completed=done, total=total, description=description, note=note)
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
