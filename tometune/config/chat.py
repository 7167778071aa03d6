"""Settings of `chat`: sampling, context and the page. None of them is part of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tometune.config.validators import at_least


class Interface(StrEnum):
    """Where the chat takes place."""

    page = "page"
    terminal = "terminal"


@dataclass
class ChatConfig:
    """Chatting with a model. The sampling settings are initial values that can be changed during the chat."""

    system: str | None = None
    """System message of new conversations; null gives none (the chat template may have its own)."""
    temperature: float = 0.7
    """0 is greedy; above 0, tokens are sampled from softmax(logits / temperature) with `seeds.generation`."""
    top_p: float = 0.9
    """Sample from the most likely tokens with this total probability (arXiv:1904.09751); 1 is all tokens."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    context: int = 8192
    """Most tokens of conversation and answer, if the model allows as many; memory for keys and values grows with it."""
    port: int | None = None
    """Port of the page; null takes the first free one from 7860."""
    inbrowser: bool | None = None
    """Whether to open the page in a browser; null does not."""


def chat_problems(chat: ChatConfig) -> Iterator[str]:
    """Yield the problems of the `chat` group."""
    yield from at_least(0, {"chat.temperature": chat.temperature})
    if not 0 < chat.top_p <= 1:
        yield f"chat.top_p={chat.top_p}: must be above 0 and at most 1"
    yield from at_least(1, {"chat.max_new_tokens": chat.max_new_tokens})
    yield from at_least(64, {"chat.context": chat.context})
    if chat.port is not None and not 1 <= chat.port <= 65535:
        yield f"chat.port={chat.port}: must be from 1 to 65535"
