"""Being told to stop: by SIGTERM, as batch systems and containers do it, or by SIGHUP, where a terminal goes away.

Ctrl-C is Python's own KeyboardInterrupt. Whatever comes, what was saved stays, and the same command goes on from it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]  # not every system has both

Handler = Callable[[int, FrameType | None], None]
"""Takes the signal's number and the frame that it came in."""


class Stopped(SystemExit):
    """This process was told to stop; it ends with the status a shell gives to it, 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number
        self.signal = signal.Signals(number)


def stop(number: int, _frame: FrameType | None) -> None:
    """Stop where the process is just now.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


@contextmanager
def told_to_stop(handler: Handler = stop) -> Iterator[None]:
    """Call a handler when this process is told to stop while the body runs; what is ignored (`nohup`) stays so."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, old in before.items() if old != signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number in heard:
            old = before[number]
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: it was not set from Python
