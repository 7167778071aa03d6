"""An engine whose tokens are words, and which says again what it was asked: for what is not about models."""

import time
from collections.abc import Iterator, Sequence

from tometune.chatting.engine import End, Message, Piece, Settings, Stopped


class Words:
    """Counts words, and makes one every `pause` seconds."""

    def __init__(self, start: str = "", context: int = 10_000, pause: float = 0.0) -> None:
        self.start = start
        self.context = context
        self.pause = pause
        self.made = 0

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) + 1 for message in messages)

    def stream(self, messages: Sequence[Message], settings: Settings, stopped: Stopped) -> Iterator[Piece]:
        text = self.start + messages[-1]["content"]
        words = text.split(" ")
        for number, word in enumerate(words):
            time.sleep(self.pause)
            if stopped():
                yield Piece("", number, End.stopped)
                return
            self.made += 1
            yield Piece(word if number == 0 else f" {word}", number + 1)
        yield Piece("", len(words) + 1, End.turn)
