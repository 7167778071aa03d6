"""Progress of long work on many rows: a bar where stderr is a terminal, else a line in the log now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EVERY = 30
"""Seconds between lines in the log."""


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with how much more is done.

    Args:
        what: is done, e.g. `data.pool: rows standardised`.
        total: of it, where that is known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done, told = 0, time.monotonic()
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    shown = bar.add_task(what, total=total)

    def advance(count: int) -> None:
        nonlocal done, told
        if not done:
            bar.start()  # not before: a download shows a bar of its own
        done += count
        bar.update(shown, completed=done)
        if not console.is_terminal and time.monotonic() - told > EVERY:
            told = time.monotonic()
            log.info("%s: %s%s", what, f"{done:,}", f" of {total:,}" if total else "")

    try:
        yield advance
    finally:
        bar.stop()
