"""From tokens to text as they come: no half characters, no special tokens."""

from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Decoder:
    """Text of a growing list of tokens.

    A token can be a part of a character, and some tokenizers write a space only between tokens; so the last few tokens
    are decoded again each time, and text is given out once it cannot change any more.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the tokens that are decoded again
        self._done = 0  # those before it are given out

    def add(self, token: int) -> str:
        """Return the text that a token completes."""
        self._ids.append(token)
        new = self._new()
        if not new or new.endswith(BROKEN):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return new

    def rest(self) -> str:
        """Return what is left at the end, e.g. a character that was never completed."""
        new = self._new()
        self._start = self._done = len(self._ids)
        return new

    def _new(self) -> str:
        """Return the text after what was given out."""
        before = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
