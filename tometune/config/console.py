"""Log lines on the terminal, above a progress bar where there is one."""

import logging
import sys
from typing import TextIO


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: rich's progress bars put themselves in its place.

    logging's own handler keeps the stream that it was made with, and its lines would end up in the middle of the bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not StreamHandler's, which sets the stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Return the stream of this moment."""
        return sys.stderr
