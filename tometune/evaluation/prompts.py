"""From messages to prompt tokens, cut in the middle where there are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tometune.common.errors import UserError

GAP = " … "
"""Stands where the middle of a message was."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model sees it."""

    text: str
    ids: list[int]
    shortened: bool


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], most: int) -> Prompt:
    """Apply the chat template, ending where the assistant's answer begins.

    A prompt of more than `most` tokens loses the middle of its last user message: instructions stand at the start or
    the end (see "Lost in the Middle", arXiv:2307.03172, for what models make of the middle).

    Raises:
        UserError: the rest of the prompt alone is longer than `most`.
    """
    text = _render(tokenizer, messages)
    ids = _tokens(tokenizer, text)
    if len(ids) <= most:
        return Prompt(text, ids, shortened=False)
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    content = _tokens(tokenizer, messages[last]["content"])
    keep = len(content) - (len(ids) - most)
    while keep > 0:
        head, tail = (keep + 1) // 2, keep // 2
        start = tokenizer.decode(content[:head]).rstrip("\ufffd")  # a cut inside a character leaves no half of it
        end = tokenizer.decode(content[len(content) - tail :]).lstrip("\ufffd")
        cut = [*messages[:last], {**messages[last], "content": f"{start}{GAP}{end}"}, *messages[last + 1 :]]
        text = _render(tokenizer, cut)
        ids = _tokens(tokenizer, text)
        if len(ids) <= most:
            return Prompt(text, ids, shortened=True)
        keep -= len(ids) - most
    raise UserError(f"eval.max_prompt_tokens={most}: too few for the chat template alone; raise it")


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """Return the prompt as text."""
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that already has its special ones."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
