"""Logging to stderr, above a progress bar, and to a file in the run's folder."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the log of this process to a file while the body runs."""
    handler = QuietFileHandler(path, encoding="utf-8")
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
    """Writes to the current `sys.stderr`, which rich's progress bars replace while they are shown.

    logging's own handler keeps the stream that it was made with, so its lines would break the bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not StreamHandler's, which sets the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr
