"""Loading in the background: what is being done, how far it is, what went wrong."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tometune.chatting.engine import Engine
from tometune.chatting.load import load_engines, stages
from tometune.chatting.sides import Side


@dataclass(frozen=True)
class Progress:
    """How far loading is."""

    stage: str
    done: int
    of: int
    seconds: float


class Loading:
    """Engines on their way, loaded by a thread of their own."""

    def __init__(self, sides: Sequence[Side], cache: Path, context: int) -> None:
        """Load nothing yet.

        Args:
            sides: what is to be loaded.
            cache: of converted models.
            context: most tokens of a conversation.
        """
        self.engines: list[Engine] = []
        self.error: Exception | None = None
        self._sides, self._cache, self._context = sides, cache, context
        self._over = threading.Event()
        self._stage, self._done, self._of = "starting", 0, stages(sides)
        self._start = time.monotonic()

    def start(self, then: Callable[[], None] = lambda: None) -> None:
        """Begin; `then` is called in the loading thread once all engines are there."""

        def work() -> None:
            """Load, and keep what went wrong."""
            try:
                self.engines = load_engines(self._sides, self._cache, self._context, self._tell)
                then()
            except Exception as error:
                self.error = error
            finally:
                self._over.set()

        threading.Thread(target=work, name="loading", daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until everything is loaded or has failed; tell whether it is."""
        return self._over.wait(seconds)

    @property
    def ready(self) -> bool:
        """Whether the engines are there."""
        return self._over.is_set() and self.error is None

    def progress(self) -> Progress:
        """Return how far it is."""
        return Progress(self._stage, self._done, self._of, time.monotonic() - self._start)

    def _tell(self, stage: str) -> None:
        """Note what is begun."""
        self._stage, self._done = stage, self._done + 1
