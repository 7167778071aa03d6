"""Word sequences: how a text becomes words, and where a row holds a sequence of an evaluation text.

Words are those of GPT-3's appendix C (https://arxiv.org/abs/2005.14165) and of lm-evaluation-harness' janitor.py: case
is folded, punctuation deleted, and the text split at white space. Beyond ASCII too, punctuation, symbols, accents and
invisible characters are deleted. Compatibility variants (full width, superscript, no-break space) are normalised.
Worker processes import this module, so it stays light.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tometune.data.features import slices

LENGTH = 13  # words in a sequence, as in GPT-3's appendix C and lm-evaluation-harness

# A shorter evaluation text is looked for as a whole, down to this many words, the least in GPT-3's appendix C.
SHORTEST = 8

ROWS = 500  # rows that a worker process searches at once

# Unicode categories that are deleted: punctuation, symbols, marks (accents), format characters, surrogates.
DELETED = ("P", "S", "M", "Cf", "Cs")


Hit = tuple[int, int, int, int]  # row, place in its words, sequence (see `Index`), length of the sequence


class _Folding(dict[int, str]):
    """What `str.translate` replaces each character with, worked out when the character first occurs."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        decomposed = unicodedata.normalize("NFKD", character).casefold()
        kept = "".join(part for part in decomposed if not unicodedata.category(part).startswith(DELETED))
        if character.isspace() or kept.isspace() or character < " " or character == "\x7f":
            kept = " "
        self[number] = character if len(kept) > 1 else kept  # a ligature stays one
        return self[number]


_FOLDING = _Folding()


def fold(text: str) -> list[str]:
    """Return the normalised words of a text.

    >>> fold("The  Café’s “opening”, at 9:30!")
    ['the', 'cafes', 'opening', 'at', '930']
    """
    return text.translate(_FOLDING).split()


def _hashes(words: list[str], length: int) -> Iterator[int]:
    """Yield a hash of every sequence of `length` words; each process has its own hashes."""
    return map(hash, zip(*(words[start:] for start in range(length)), strict=False))


class Index:
    """The sequences of the evaluation texts; each is known by the place in `words` where it first occurs."""

    def __init__(self, texts: Iterable[list[str]]) -> None:
        self.words: list[str] = []  # of all texts, one after the other
        self.texts: list[range] = []  # the places of each text
        self._tables: dict[int, dict[int, int]] = {}  # sequences by length and hash
        self._starts: set[int] = set()  # their first words, which hardly any row of a training set contains
        for words in texts:
            begin, length = len(self.words), min(len(words), LENGTH)
            self.words += words
            self.texts.append(range(begin, len(self.words)))
            table = self._tables.setdefault(length, {})
            for place, value in enumerate(_hashes(words, length), begin):
                table.setdefault(value, place)
            self._starts.update(_hashes(words, SHORTEST))

    def sequences(self, text: int) -> set[int]:
        """Return the sequences of a text."""
        words = [self.words[place] for place in self.texts[text]]
        length = min(len(words), LENGTH)
        return {self._tables[length][value] for value in _hashes(words, length)}

    def find(self, words: list[str]) -> list[tuple[int, int, int]]:
        """Return (place, sequence, length) of each sequence in the words of a row, by place."""
        if self._starts.isdisjoint(_hashes(words, SHORTEST)):
            return []
        found = []
        for length, table in self._tables.items():
            for place, value in enumerate(_hashes(words, length)):
                sequence = table.get(value)
                # The words decide, so that a collision of hashes is no overlap.
                if sequence is not None and self.words[sequence : sequence + length] == words[place : place + length]:
                    found.append((place, sequence, length))
        return sorted(found)


@lru_cache(maxsize=1)
def index_of(file: Path) -> Index:
    """Return the index of a file of normalised texts, one per line; made once per process."""
    return Index(line.split() for line in file.read_text(encoding="utf-8").split("\n") if line)


def search(first: int, rows: Path, texts: Path) -> list[Hit]:
    """Search `ROWS` conversations of a rows.arrow, each as one text: a sequence may span several turns."""
    index = index_of(texts)
    conversations = (turns for batch in slices(rows, first, first + ROWS) for turns in batch["messages"].to_pylist())
    return [
        (row, *hit)
        for row, turns in enumerate(conversations, first)
        for hit in index.find(fold(" ".join(turn["content"] for turn in turns)))
    ]
