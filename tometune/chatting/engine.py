"""What every engine offers, and how the engines of a chat are loaded. Imports no torch until then."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tometune.common.imports import quick_imports

if TYPE_CHECKING:
    from tometune.chatting.targets import Target
    from tometune.chatting.transformers_engine import SharedModel

log = logging.getLogger(__name__)

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
    """One step of an answer. A piece without a new token only gives the reader an opportunity to stop."""

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
        """Return the number of tokens of a prompt. Raises UserError if the chat template refuses the messages."""

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Yield the answer piece by piece, without special tokens. Closing the iterator stops the generation."""

    def close(self) -> None:
        """Release what the engine holds outside this process."""


def load_engines(targets: Sequence[Target], cache: Path, context: int) -> list[Engine]:
    """Return one engine per target. Targets with the same base share its weights.

    Args:
        targets: the models of the chat.
        cache: folder of converted models.
        context: longest conversation in tokens.

    Raises:
        UserError: this machine, the hub or the files do not allow it.
    """
    bases: dict[str, SharedModel] = {}
    engines: list[Engine] = []
    for number, target in enumerate(targets):
        log.info("loading %s", target.label)
        if target.gguf is not None:
            from tometune.chatting.llama_cpp import LlamaEngine

            engines.append(LlamaEngine(target.gguf, context))
            continue
        with quick_imports():
            from tometune.chatting.transformers_engine import SharedModel, TransformersEngine
            from tometune.models.load import check_machine, load_model
            from tometune.models.source import locate
            from tometune.models.tokenizer import load_tokenizer
        assert target.model is not None
        key, adapter = repr(target.model), None
        if key not in bases:
            check_machine(target.model)
            source = locate(target.model, cache)
            bases[key] = SharedModel(load_model(source), load_tokenizer(source))
        if target.adapter is not None:
            adapter = f"target{number}"
            bases[key].add_adapter(target.adapter, adapter)
        engines.append(TransformersEngine(bases[key], adapter, context))
    for engine in engines:  # the first pass prepares kernels and buffers, which would delay the first answer
        list(engine.stream([{"role": "user", "content": "Hello"}], Settings(temperature=0, max_new_tokens=2)))
    return engines
