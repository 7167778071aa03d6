"""What every engine offers. Imports no torch."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

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

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        """Yield the answer piece by piece, without special tokens. Closing the iterator stops the generation."""

    def close(self) -> None:
        """Release what the engine holds outside this process."""
