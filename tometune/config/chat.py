"""Schema of the `chat` group: how answers are drawn, and how the page is served. Nothing here is part of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tometune.config.validators import at_least


class Interface(StrEnum):
    """Where one talks to the model."""

    page = "page"
    terminal = "terminal"


@dataclass
class ChatConfig:
    """Talking to a model."""

    system: str | None = None
    """System message of new conversations; null gives none (the chat template may have its own)."""

    temperature: float = 0.7
    """0 answers greedily; above 0 draws from softmax(logits / temperature), with `seeds.generation`."""

    top_p: float = 0.9
    """Draws only from the likeliest tokens that hold this much of the probability (arXiv:1904.09751)."""

    max_new_tokens: int = 512
    """Longest answer, in tokens."""

    context: int = 8192
    """Tokens of prompt and answer together, where the model itself allows more; the cache of keys grows with it."""

    port: int | None = None
    """Port of the page; null takes the first free one from 7860."""

    inbrowser: bool | None = None
    """Whether to open the page in a browser; null does so where there is a screen and a terminal, not over ssh."""


def chat_problems(chat: ChatConfig) -> Iterator[str]:
    """Yield the problems of the `chat` group."""
    yield from at_least(0, {"chat.temperature": chat.temperature})
    if not 0 < chat.top_p <= 1:
        yield f"chat.top_p={chat.top_p}: not above 0 and at most 1"
    yield from at_least(1, {"chat.max_new_tokens": chat.max_new_tokens})
    yield from at_least(64, {"chat.context": chat.context})
    if chat.port is not None and not 1 <= chat.port <= 65535:
        yield f"chat.port={chat.port}: not from 1 to 65535"
