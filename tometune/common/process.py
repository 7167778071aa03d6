"""This process: its stop signals and its imports.

Stop signals are SIGTERM, from batch systems and containers, and SIGHUP, from a closed terminal. Ctrl-C stays Python's.
"""

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]  # not every system has both


class Stopped(SystemExit):
    """A signal stopped this process; its exit status is 128 + the number of the signal, as a shell reports it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number
        self.signal = signal.Signals(number)


def stop(number: int, _frame: FrameType | None) -> None:
    """Stop immediately: raise `Stopped`."""
    raise Stopped(number)


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], None] = stop) -> Iterator[None]:
    """Call a handler for each stop signal while the body runs. Signals that are ignored (`nohup`) stay ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    main = threading.current_thread() is threading.main_thread()  # no other thread may set a handler
    handled = [number for number, old in before.items() if old != signal.SIG_IGN and main]
    try:
        for number in handled:
            signal.signal(number, handler)
        yield
    finally:
        for number in handled:
            old = before[number]
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: it was not set from Python


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause the garbage collector while the body imports, since it would scan torch's modules again and again.

    Saves 1.0 of the 4.5 CPU seconds that the imports of `train` take (docs/LOG.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
