"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
