"""Loading in the background: what is being done, how far it is, what went wrong."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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

    downloaded: int = 0
    """Bytes that came from the hub since loading began."""

    def said(self) -> str:
        """Return it in words."""
        got = f", {self.downloaded / 1e6:,.0f} MB downloaded" if self.downloaded >= 1e6 else ""
        return f"{self.stage} ({self.done} of {self.of}, {self.seconds:.0f} s{got})"


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
        self._before = on_disk(sides)

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
        seconds, downloaded = time.monotonic() - self._start, on_disk(self._sides) - self._before
        return Progress(self._stage, self._done, self._of, seconds, max(downloaded, 0))

    def _tell(self, stage: str) -> None:
        """Note what is begun."""
        self._stage, self._done = stage, self._done + 1


def on_disk(sides: Sequence[Side]) -> int:
    """Return the bytes that the hub's local cache has of the models, half-downloaded files included."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    ids = (side.model.id for side in sides if side.model is not None)
    names = {repo_folder_name(repo_id=one, repo_type="model") for one in ids if not Path(one).expanduser().is_dir()}
    files = (file for name in names for file in (Path(constants.HF_HUB_CACHE) / name / "blobs").glob("*"))
    total = 0
    for file in files:
        with suppress(OSError):  # renamed this moment
            total += file.stat().st_size
    return total
