"""Conversations: questions, and an answer to each from every model that is asked; as JSON and as training data."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from tometune.chatting.engine import End, Message
from tometune.data.conversations import encodable

FROM = {"system": "system", "user": "human", "assistant": "gpt"}
"""Roles as ShareGPT calls them."""

TITLE = 40
"""Characters of a title."""


@dataclass
class Answer:
    """What one model answered to one question."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    """The model's own time: without waiting for others, or for the model beside it."""

    first: float = 0.0
    """Seconds of it until the first token."""

    end: str | None = None
    """A value of `End`; None while it is being made, or where it broke off."""

    left_out: str = ""
    """What of the conversation did not fit, in words."""

    def said(self) -> str:
        """Return how long and how fast it was, in words; nothing before there is anything to say."""
        if not self.tokens:
            return self.left_out
        speed = f"{self.tokens / self.seconds:.1f} tokens/s" if self.seconds > 0 else ""
        why = {str(End.length): "cut at max new tokens", str(End.stopped): "stopped"}.get(self.end or "", "")
        counted = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        return " · ".join(filter(None, [counted, speed, f"first after {self.first:.2f} s", why, self.left_out]))


@dataclass
class Turn:
    """One question and its answers, one a model."""

    question: str
    answers: list[Answer]
    seed: int = 0


@dataclass
class Conversation:
    """What one user and the models said to each other."""

    models: list[str]
    """The models' names, one an answer of each turn."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def title(self) -> str:
        """The beginning of the first question."""
        text = " ".join(self.turns[0].question.split()) if self.turns else ""
        return f"{text[: TITLE - 1]}…" if len(text) > TITLE else text or "New conversation"

    def ask(self, question: str, seed: int) -> Turn:
        """Add a turn that is not answered yet."""
        turn = Turn(encodable(question), [Answer() for _ in self.models], seed)
        self.turns.append(turn)
        return turn

    def messages(self, side: int) -> list[Message]:
        """Return what one of the models is given: its own answers, and the last question without one."""
        said: list[Message] = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:-1]:
            said.append({"role": "user", "content": turn.question})
            said.append({"role": "assistant", "content": turn.answers[side].text})
        return [*said, {"role": "user", "content": self.turns[-1].question}]

    def sharegpt(self) -> list[dict[str, Any]]:
        """Return a training row for each model, in ShareGPT's shape; only turns that were answered are in it."""
        return [{"conversations": list(self._turns(side)), "model": model} for side, model in enumerate(self.models)]

    def _turns(self, side: int) -> Iterator[dict[str, str]]:
        """Yield one model's turns in ShareGPT's shape."""
        if self.system.strip():
            yield {"from": FROM["system"], "value": self.system}
        for turn in self.turns:
            if turn.answers[side].text:
                yield {"from": FROM["user"], "value": turn.question}
                yield {"from": FROM["assistant"], "value": turn.answers[side].text}

    def to_json(self) -> str:
        """Return all of it, to be kept."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, models: Sequence[str]) -> Self | None:
        """Return a kept conversation; None if it is broken, or one with other models."""
        try:
            read = json.loads(text)
            turns = [_turn(entry) for entry in read["turns"]]
            kept = cls(list(map(str, read["models"])), encodable(_text(read["system"])), turns, _text(read["id"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        fits = all(len(turn.answers) == len(kept.models) for turn in kept.turns)
        return kept if fits and kept.models == list(models) else None


def _turn(entry: Mapping[str, Any]) -> Turn:
    """Read a kept turn; an answer that had not ended, or does not say how, counts as stopped.

    Raises:
        TypeError: a text is none; numbers that are none become 0.
    """
    answers = []
    for each in entry["answers"]:
        end = each["end"] if each["end"] in list(End) else End.stopped
        tokens, seconds, first = (_number(each[name]) for name in ("tokens", "seconds", "first"))
        text, left_out = encodable(_text(each["text"])), encodable(_text(each["left_out"]))
        answers.append(Answer(text, int(tokens), seconds, first, str(end), left_out))
    return Turn(encodable(_text(entry["question"])), answers, int(min(_number(entry["seed"]), 2**32 - 1)))


def _text(value: Any) -> str:
    """Return a text that is one.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"not a text: {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    """Return a number that is one, finite and not negative; else 0."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if good else 0
