"""An engine whose tokens are words and which repeats the prompt, for tests that are not about models."""

import time

from tometune.chatting.conversation import End, Piece


class Words:
    """Generates a word every `pause` seconds."""

    def __init__(self, start="", context=10_000, pause=0.0):
        self.start = start
        self.context = context
        self.pause = pause
        self.made = 0
        self.seeds = []

    def count(self, messages):
        return sum(len(message["content"].split()) + 1 for message in messages)

    def stream(self, messages, settings):
        self.seeds.append(settings.seed)
        words = (self.start + messages[-1]["content"]).split(" ")
        for number, word in enumerate(words):
            time.sleep(self.pause)
            self.made += 1
            yield Piece(word if number == 0 else f" {word}", number + 1)
        yield Piece("", len(words) + 1, End.turn)
