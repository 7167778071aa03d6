"""Progress of long work: a bar if stderr is a terminal, else a line in the log now and then."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        self.set(int(self._state.completed) + count)

    def set(self, done: int, total: int | None = None, description: str | None = None, note: str = "") -> None:
        """Set how much is done, and optionally of how much, of which work, and a note next to it, e.g. the loss."""
        self.rich.start()
        changed: dict[str, Any] = {"total": total, "description": description}
        given = {name: value for name, value in changed.items() if value is not None}
        self.rich.update(self.task, completed=done, note=note, **given)
        if not self.visible and time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            total = None if self._state.total is None else int(self._state.total)
            log.info("%s: %s%s", self._state.description, f"{done:,}", f" of {total:,}" if total else "")

    @property
    def _state(self) -> Any:
        return self.rich.tasks[self.task]


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Bar]:
    """Yield a bar; call it with each amount of work that is done, or `set` the sum.

    Args:
        description: of the work, e.g. `data.pool: rows standardised`.
        total: amount of the work, if it is known.
    """
    bar = Bar(description, total)
    try:
        yield bar
    finally:
        bar.rich.stop()
