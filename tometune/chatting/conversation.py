"""Conversations with one or two models: prompts, answers, truncation to the context, export as ShareGPT.

It also defines `Engine`, what all engines of the chat have in common.

Imports no torch.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tometune.common.errors import UserError
from tometune.data.conversations import encodable

Message = dict[str, str]  # `{role, content}`

GAP = "\n…\n"  # replaces the middle of a prompt that is too long


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
    tokens: int  # generated so far, including the end-of-turn token
    end: End | None = None  # set in the last piece only


class Engine(Protocol):
    """A loaded model."""

    context: int  # tokens that prompt and answer may have together

    def count(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a prompt. Raises UserError if the chat template rejects the messages."""

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        """Yield the answer piece by piece, without special tokens. Closing the iterator stops the generation."""


@dataclass
class Answer:
    """The answer of one model to one prompt."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    first: float = 0.0  # seconds until the first token
    end: End | None = None  # None while the answer is being generated
    note: str = ""  # what the model is waiting for, an error, or what was dropped because it did not fit

    def generate(self, engine: Engine, messages: Sequence[Message], settings: Settings) -> Generator[None, None, None]:
        """Fill in the answer; yields after each piece. Closing the iterator stops the engine."""
        start = time.perf_counter()
        try:
            fitted, self.note = truncate_to_context(engine, messages, settings.max_new_tokens)
            with closing(engine.stream(fitted, settings)) as pieces:
                for piece in pieces:
                    if piece.tokens > self.tokens:
                        self.tokens, self.seconds = piece.tokens, time.perf_counter() - start
                        self.first = self.first or self.seconds
                    self.text = (self.text + piece.text).lstrip()
                    self.end = piece.end
                    yield
        except Exception as error:  # e.g. out of memory: the next prompt may be a shorter one
            self.note = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        finally:
            self.text = self.text.strip()  # as in scoring
            self.end = self.end or End.stopped

    def summary(self) -> str:
        """Return length and speed in words, and what was unusual."""
        if not self.tokens:
            return self.note or ("stopped" if self.end else "")
        speed = f"{self.tokens / self.seconds:.1f} tokens/s"
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

    models: list[str]  # names of the models, in the order of the answers of each turn
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def ask(self, prompt: str, seed: int) -> Turn:
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


def truncate_to_context(engine: Engine, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], str]:
    """Drop the oldest turns, then the middle of the last prompt, until a conversation fits into the context.

    At most half of the context is left for the answer. Also returns what was dropped, in words (empty if nothing).

    Raises:
        UserError: the system message alone is too long, or the chat template refuses the messages.
    """
    limit = engine.context - min(max_new_tokens, engine.context // 2)
    system = [message for message in messages[:1] if message["role"] == "system"]
    *earlier, last = messages[len(system) :]
    turns, prompt = len(earlier) // 2, last["content"]
    while (count := engine.count([*system, *earlier, last])) > limit:
        if earlier:
            del earlier[:2]
            continue
        text = last["content"]
        keep = min(len(text) * limit // count, len(text) - 8)
        if keep <= 0:
            raise UserError(f"the system message leaves no room for a prompt ({count} of {limit} tokens); shorten it")
        # The first and the last characters are kept, where instructions usually stand (arXiv:2307.03172).
        last = {**last, "content": f"{text[: (keep + 1) // 2]}{GAP}{text[len(text) - keep // 2 :]}"}
    dropped = turns - len(earlier) // 2
    parts = [f"the oldest {dropped} turns" if dropped > 1 else "the oldest turn"] if dropped else []
    parts += ["the middle of the prompt"] if last["content"] != prompt else []
    note = f"too long for the context; dropped {' and '.join(parts)}" if parts else ""
    return [*system, *earlier, last], note


SYMBOLS = {
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\N{SYMBOL FOR DELETE}",
}
"""Replacements for control characters, and for those that change the direction of writing."""


def show_control_characters(text: str) -> str:
    """Return a text in which control characters are replaced by symbols for them."""
    return text.replace("\r\n", "\n").translate(SYMBOLS)
