"""The log of a run, in its folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
        with suppress(OSError):  # what could not be written before
            handler.close()


class QuietFileHandler(logging.FileHandler):
    """A log file that costs no run its end: on a full disk, logging would print a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name logging calls
        """Leave the line out of the file; stderr has it too."""
