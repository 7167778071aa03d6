"""What every engine offers, and how the engines of a chat are loaded in the background. Imports no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tometune
from tometune.common.imports import quick_imports

if TYPE_CHECKING:
    from tometune.chatting.targets import Target
    from tometune.chatting.transformers_engine import SharedModel

Message = dict[str, str]
"""`{role, content}`."""


class End(StrEnum):
    """Why an answer ended."""

    turn = "turn"
    length = "length"
    stopped = "stopped"


@dataclass(frozen=True)
class Settings:
    """How an answer is sampled; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """One step of an answer; a piece without a new token only lets the reader react, e.g. stop."""

    text: str
    tokens: int
    """Tokens generated so far, including the end-of-turn token."""

    end: End | None = None
    """Set in the last piece only."""


class Engine(Protocol):
    """A loaded model."""

    context: int
    """Tokens that prompt and answer may have together."""

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a prompt, including the header of the answer.

        Raises:
            UserError: the chat template refuses these messages.
        """

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Yield the answer piece by piece, without special tokens. Closing the iterator stops the generation."""

    def close(self) -> None:
        """Release what the engine holds outside this process."""


class Loading:
    """Engines that a background thread loads, so that the page can be opened meanwhile."""

    def __init__(self, load: Callable[[Callable[[str], None]], list[Engine]]) -> None:
        """Do not load yet. `load` gets a function that it calls with a description of each step."""
        self.engines: list[Engine] = []
        self.error: Exception | None = None
        self._load = load
        self._step = "starting"
        self._started = time.monotonic()
        self._over = threading.Event()

    def start(self) -> None:
        """Start loading."""
        self._started = time.monotonic()
        threading.Thread(target=self._run, name="loading", daemon=True).start()

    def _run(self) -> None:
        try:
            self.engines = self._load(lambda step: setattr(self, "_step", step))
        except Exception as error:
            self.error = error
        finally:
            self._over.set()

    @property
    def progress(self) -> str:
        """The current step and the seconds since the start."""
        return f"{self._step} ({time.monotonic() - self._started:.0f} s)"

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for at most `seconds`; return whether loading has finished or failed."""
        return self._over.wait(seconds)


def load_engines(
    targets: Sequence[Target], cache: Path, context: int, report: Callable[[str], None] = lambda _: None
) -> list[Engine]:
    """Return one engine per target. Targets with the same base share its weights.

    Args:
        targets: the models of the chat.
        cache: folder of converted models.
        context: longest conversation in tokens.
        report: called with a description of each step.

    Raises:
        UserError: this machine, the hub or the files do not allow it.
    """
    bases: dict[str, SharedModel] = {}
    engines: list[Engine] = []
    for number, target in enumerate(targets):
        report(f"loading {target.label} (downloaded or converted the first time)")
        if target.gguf is not None:
            from tometune.chatting.llama_cpp import LlamaEngine

            engines.append(LlamaEngine(target.gguf, context))
            continue
        with quick_imports():
            from tometune.chatting.transformers_engine import SharedModel, TransformersEngine
        assert target.model is not None
        key, adapter = repr(target.model), None
        if key not in bases:
            bases[key] = SharedModel.load(target.model, cache)
        if target.adapter is not None:
            adapter = f"target{number}"
            bases[key].add_adapter(target.adapter, adapter)
        engines.append(TransformersEngine(bases[key], adapter, context))
    report("warming up")
    for engine in engines:  # the first pass prepares kernels and buffers, which would delay the first answer
        list(engine.stream([{"role": "user", "content": "Hello"}], Settings(temperature=0, max_new_tokens=2)))
    return engines


def install_command(extra: str, package: str) -> str:
    """Return the command that installs a missing package, in a checkout or elsewhere."""
    script = Path(tometune.__file__).parents[1] / "scripts" / "setup.sh"
    return f"bash scripts/setup.sh {extra}" if script.is_file() else f"pip install {package}"
