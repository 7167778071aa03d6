"""Imports of the slow libraries, made a quarter faster."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Hold the garbage collector while the body imports: it would look through torch's modules again and again.

    Saves 1.0 of 4.5 CPU seconds for what `train` imports (docs/LOG.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
