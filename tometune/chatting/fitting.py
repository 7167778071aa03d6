"""What of a conversation fits into the model's context: the oldest turns go first, and it is said that they did."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tometune.chatting.engine import Engine, Message
from tometune.common.errors import UserError

GAP = "\n…\n"
"""Stands where the middle of a message was."""

LONGEST_TOKEN = 16
"""Characters a token that are surely too many, on average over a text that fills the context."""


@dataclass(frozen=True)
class Fitted:
    """Messages that fit."""

    messages: list[Message]
    dropped: int
    """Turns, the oldest, that are left out: a question and its answer are one."""

    cut: bool
    """Whether the last question lost its middle."""

    def said(self) -> str:
        """Return what was left out, in words; empty if nothing was."""
        turns = f"the oldest {self.dropped} turns" if self.dropped > 1 else "the oldest turn"
        left = [f"{turns} left out"] if self.dropped else []
        left += ["the middle of the prompt left out"] if self.cut else []
        return f"longer than the context: {' and '.join(left)}" if left else ""


def fit(engine: Engine, messages: Sequence[Message], max_new_tokens: int) -> Fitted:
    """Return what of a conversation leaves room for the answer; of the context, an answer reserves half at most.

    Args:
        engine: counts the tokens and knows the context.
        messages: an optional system message, then questions and answers in turn, the last a question.
        max_new_tokens: longest answer.

    Raises:
        UserError: the system message alone is too long, or the chat template refuses such turns.
    """
    most = engine.context - min(max_new_tokens, engine.context // 2)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    longest = LONGEST_TOKEN * engine.context
    last, cut = turns[-1], len(turns[-1]["content"]) > longest
    if cut:  # counting the tokens of megabytes takes seconds
        last = {**last, "content": _middle_cut(last["content"], longest)}
    earlier = turns[:-1]

    def fits(dropped: int) -> bool:
        """Tell whether what is left without the oldest turns has few enough tokens."""
        return not _too_long([*system, *earlier[2 * dropped :], last], longest, engine, most)

    pairs = (len(earlier) + 1) // 2
    dropped = 0 if not pairs or fits(0) else bisect_left(range(pairs), True, lo=1, key=fits)
    fitted = [*system, *earlier[2 * dropped :], last]
    while (count := engine.count(fitted)) > most:
        cut = True
        keep = min(len(last["content"]) * most // count, len(last["content"]) - 8)
        if keep <= 0:
            raise UserError(f"the system message leaves no room for a prompt: {count} tokens, {most} fit; shorten it")
        last = {**last, "content": _middle_cut(last["content"], keep)}
        fitted = [*system, last]
    return Fitted(fitted, dropped, cut)


def _too_long(messages: Sequence[Message], longest: int, engine: Engine, most: int) -> bool:
    """Tell whether messages have too many tokens, without counting where there can be no doubt."""
    return sum(len(message["content"]) for message in messages) > longest or engine.count(messages) > most


def _middle_cut(text: str, keep: int) -> str:
    """Return the beginning and the end of a text, `keep` characters in all, with a gap between.

    Instructions stand at the start or the end (see "Lost in the Middle", arXiv:2307.03172).
    """
    head, tail = (keep + 1) // 2, keep // 2
    return f"{text[:head]}{GAP}{text[len(text) - tail :]}"
