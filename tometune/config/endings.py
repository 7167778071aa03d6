"""How a command ends: its exit status, and the line that says why."""

import contextlib
import logging
import signal
import sys
import traceback

from tometune.common.distributed import is_first
from tometune.common.errors import UserError
from tometune.common.signals import Stopped
from tometune.config.messages import one_line

log = logging.getLogger(__name__)

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set to 1 by the user to see tracebacks; set to 1 for Hydra so that it raises instead of printing and exiting."""

DONE, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit statuses."""


def report(error: BaseException, traceback_wanted: bool, resumed: bool = False) -> int:
    """Tell an error in one line (a `ConfigError`: one a problem) on stderr and return the exit status.

    Args:
        error: what ended the command.
        traceback_wanted: show the traceback too.
        resumed: whether the same command, after it was stopped, goes on from what was saved.
    """
    if traceback_wanted:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        if is_first():
            print(error, file=sys.stderr)
        return WRONG_INPUT
    if isinstance(error, KeyboardInterrupt | Stopped):
        told = f"stopped by {error.signal.name}" if isinstance(error, Stopped) else "interrupted"
        if is_first():
            with contextlib.suppress(OSError):  # the terminal is gone
                print(told + ("; the same command goes on from what was saved" if resumed else ""), file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    log.debug("failed", exc_info=error)
    hint = "" if traceback_wanted else f" ({FULL_ERROR}=1 shows the traceback)"
    print(f"{type(error).__name__}: {one_line(error)}{hint}", file=sys.stderr)
    return FAILED
