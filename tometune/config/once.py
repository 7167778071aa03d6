"""For verbs that are about a whole sweep, not about each of its runs."""

import functools
import sys
from collections.abc import Callable


def once(command: Callable[[], None]) -> Callable[[], None]:
    """Make a command for which `+sweep=NAME` means one config, with that sweep's name, instead of one for each run."""

    @functools.wraps(command)
    def single() -> None:
        before = sys.argv
        if any(text.startswith("+sweep=") for text in before):
            sys.argv = [*before, "hydra.mode=RUN"]
        try:
            command()
        finally:
            sys.argv = before

    return single
