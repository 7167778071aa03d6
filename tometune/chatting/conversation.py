"""Conversations: prompts with the answers of one or two models, truncation to the context, and export as ShareGPT."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from tometune.chatting.engine import End, Engine, Message, Settings
from tometune.common.errors import UserError
from tometune.data.conversations import encodable

GAP = "\n…\n"
"""Replaces the middle of a prompt that is too long."""

CHARACTERS_PER_TOKEN = 16
"""More than any text that fills a context has on average."""


@dataclass
class Answer:
    """The answer of one model to one prompt."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    first: float = 0.0
    """Seconds until the first token."""

    end: str | None = None
    """A value of `End`; None while the answer is being generated."""

    note: str = ""
    """An error, or what was dropped because it did not fit."""

    def generate(self, engine: Engine, messages: Sequence[Message], settings: Settings) -> Generator[None, None, None]:
        """Fill in the answer; yields after each piece. Closing the iterator stops the engine."""
        start = time.perf_counter()
        try:
            fitted, self.note = fit(engine, messages, settings.max_new_tokens)
            with closing(engine.stream(fitted, settings)) as pieces:
                for piece in pieces:
                    if piece.tokens > self.tokens:
                        self.tokens, self.seconds = piece.tokens, time.perf_counter() - start
                        self.first = self.first or self.seconds
                    self.text = (self.text + piece.text).lstrip()
                    self.end = piece.end and str(piece.end)
                    yield
        except Exception as error:  # e.g. out of memory: the next prompt may be a shorter one
            self.note = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        finally:
            self.text = self.text.strip()  # as in scoring
            self.end = self.end or str(End.stopped)

    def summary(self) -> str:
        """Return length and speed in words, and what was unusual."""
        if not self.tokens:
            return self.note or ("stopped" if self.end else "")
        speed = f"{self.tokens / self.seconds:.1f} tokens/s" if self.seconds else ""
        counted = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        end = {"length": "reached max new tokens", "stopped": "stopped"}.get(self.end or "", "")
        return " · ".join(filter(None, [counted, speed, f"first token after {self.first:.2f} s", end, self.note]))


@dataclass
class Turn:
    """One prompt and its answers, one per model."""

    prompt: str
    answers: list[Answer]
    seed: int = 0


@dataclass
class Conversation:
    """A conversation of one user with one or two models."""

    models: list[str]
    """Names of the models, in the order of the answers of each turn."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def ask(self, prompt: str, seed: int) -> Turn:
        """Add a turn without answers."""
        self.turns.append(Turn(encodable(prompt), [Answer() for _ in self.models], seed))
        return self.turns[-1]

    def retry(self, number: int, settings: Settings) -> Turn:
        """Ask the prompt of a turn again with the next seed; this and all later turns are dropped."""
        turn = self.turns[number]
        del self.turns[number:]
        return self.ask(turn.prompt, turn.seed + 1 if settings.temperature else turn.seed)

    def edit(self, number: int, prompt: str, settings: Settings) -> Turn:
        """Ask another prompt instead; this and all later turns are dropped."""
        del self.turns[number:]
        return self.ask(prompt, settings.seed)

    def messages(self, side: int) -> list[Message]:
        """Return the prompt for one of the models: the earlier turns with its own answers, and the last prompt."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:-1]:
            messages.append({"role": "user", "content": turn.prompt})
            messages.append({"role": "assistant", "content": turn.answers[side].text})
        return [*messages, {"role": "user", "content": self.turns[-1].prompt}]

    def sharegpt(self) -> list[dict[str, Any]]:
        """Return one training row per model, in ShareGPT's format. Turns without an answer are left out."""
        rows = []
        for side, model in enumerate(self.models):
            messages = [{"from": "system", "value": self.system}] if self.system.strip() else []
            for turn in self.turns:
                if answer := turn.answers[side].text:
                    messages += [{"from": "human", "value": turn.prompt}, {"from": "gpt", "value": answer}]
            rows.append({"conversations": messages, "model": model})
        return rows


def fit(engine: Engine, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], str]:
    """Truncate a conversation to the context: the oldest turns first, then the middle of the last prompt.

    Args:
        engine: counts the tokens and knows the context.
        messages: an optional system message, then prompts and answers in turn, ending with a prompt.
        max_new_tokens: room to leave for the answer, at most half of the context.

    Returns:
        the messages that fit, and a description of what was dropped (empty if nothing was).

    Raises:
        UserError: the system message alone is too long, or the chat template refuses the messages.
    """
    limit = engine.context - min(max_new_tokens, engine.context // 2)
    longest = CHARACTERS_PER_TOKEN * engine.context
    system = [message for message in messages[:1] if message["role"] == "system"]
    *earlier, last = messages[len(system) :]
    shortened = len(last["content"]) > longest
    if shortened:  # tokenising megabytes takes seconds
        last = _without_middle(last, longest)
    dropped = 0
    while earlier and (
        sum(len(message["content"]) for message in earlier) > longest or engine.count([*system, *earlier, last]) > limit
    ):
        del earlier[:2]
        dropped += 1
    while (count := engine.count([*system, *earlier, last])) > limit:
        shortened = True
        keep = min(len(last["content"]) * limit // count, len(last["content"]) - 8)
        if keep <= 0:
            raise UserError(f"the system message leaves no room for a prompt ({count} of {limit} tokens); shorten it")
        last = _without_middle(last, keep)
    parts = [f"the oldest {dropped} turns" if dropped > 1 else "the oldest turn"] if dropped else []
    parts += ["the middle of the prompt"] if shortened else []
    note = f"too long for the context; dropped {' and '.join(parts)}" if parts else ""
    return [*system, *earlier, last], note


def _without_middle(message: Message, keep: int) -> Message:
    """Keep the first and the last characters, where instructions usually stand (arXiv:2307.03172)."""
    text = message["content"]
    return {**message, "content": f"{text[: (keep + 1) // 2]}{GAP}{text[len(text) - keep // 2 :]}"}
