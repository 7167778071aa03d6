"""What answers: the face that every engine has, so that page and terminal know no library."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

Message = dict[str, str]
"""`{role, content}`."""

Stopped = Callable[[], bool]
"""Whether the answer is not wanted any more; asked before every token."""

BURST = 4
"""Tokens that one of two answers gets before it is the other's turn."""


class End(StrEnum):
    """Why an answer ended."""

    turn = "turn"
    length = "length"
    stopped = "stopped"


@dataclass(frozen=True)
class Settings:
    """How an answer is drawn."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """What a step adds to an answer."""

    text: str
    """New text, without special tokens; often empty, where a character or the end needs more tokens."""

    tokens: int
    """Tokens so far, the end of turn included."""

    end: End | None = None
    """Set in the last piece, and there only."""


class Engine(Protocol):
    """A model that is ready to answer."""

    context: int
    """Tokens that prompt and answer may take together."""

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt, the beginning of the answer included.

        Raises:
            UserError: the chat template refuses such turns.
        """

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        """Yield the answer as it is made, one piece a token."""
