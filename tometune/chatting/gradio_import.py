"""Gradio, imported without the files for editors that it would write, and with its telemetry off."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from tometune.common.imports import quick_imports


def import_gradio() -> None:
    """Import it, before any module that needs it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with quick_imports(), _no_stubs():
        import gradio  # noqa: F401


@contextlib.contextmanager
def _no_stubs() -> Iterator[None]:
    """Keep Gradio from parsing its sources and writing a stub beside each component on every import.

    That is a third of its import, 1.1 of 3.0 s of CPU time (docs/chat.md). It leaves out components that `inspect`
    finds no file for; so for the moment it finds none for Gradio's.
    """
    getfile = inspect.getfile

    def without(thing: Any) -> str:
        if getattr(thing, "__module__", "").startswith("gradio."):
            raise OSError("no stubs")
        return getfile(thing)

    inspect.getfile = without  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile
