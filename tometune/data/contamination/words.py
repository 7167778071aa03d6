"""Words of many texts at once, as numbers: normalised bytes, where each word stands, and hashes of runs of them.

Normalisation is that of GPT-3's appendix C (https://arxiv.org/abs/2005.14165) and of lm-evaluation-harness
(`lm_eval/decontamination/janitor.py`): case folded, punctuation deleted, split at white space. Beyond ASCII too:
punctuation, symbols, accents and invisible characters go, and a character that is another in a costume (full width,
superscript, no-break space) is that other.

All of it is arithmetic over the bytes of a batch in NumPy and Arrow; no row becomes a Python object.
"""

import string
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPACE, BORDER = 32, 1
"""Bytes between words, and the word that stands after each row: a run over it is in no evaluation text."""

DELETED = ("P", "S", "M", "Cf")
"""Unicode's classes of characters that are deleted: punctuation, symbols, marks (accents), format."""

PLANES = 0x20000
"""Characters from here on, rare Chinese ones, are letters as they are."""

BASE, SCRAMBLE = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)
"""Odd numbers; the first has an inverse modulo 2^64."""


def _bytes() -> np.ndarray:
    """Return what becomes of each byte of ASCII; 0 is deleted."""
    table = np.arange(256, dtype=np.uint8)
    table[:33] = table[127] = SPACE
    table[BORDER] = BORDER
    for letter in string.ascii_uppercase:
        table[ord(letter)] = ord(letter.lower())
    table[[ord(mark) for mark in string.punctuation]] = 0
    return table


BYTES = _bytes()


@cache
def _characters() -> np.ndarray:
    """Return the same for each character of Unicode."""
    table = np.arange(0x110000, dtype=np.uint32)
    table[:128] = BYTES[:128]
    for number in range(128, PLANES):
        table[number] = _character(chr(number))
    return table


def _character(given: str) -> int:
    """Return what a character beyond ASCII is taken for; 0 is deleted."""
    decomposed = unicodedata.normalize("NFKD", given).casefold()
    kept = "".join(part for part in decomposed if not unicodedata.category(part).startswith(DELETED))
    if given.isspace() or (kept and kept.isspace()):
        return SPACE
    if not kept:
        return 0
    return ord(kept if len(kept) == 1 else given)


@cache
def _powers(exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of `BASE` and of its inverse modulo 2^64, from 0 to 2^exponent."""
    made = []
    for factor in (int(BASE), pow(int(BASE), -1, 2**64)):
        numbers = np.full(2**exponent + 1, factor, dtype=np.uint64)
        numbers[0] = 1
        made.append(np.cumprod(numbers, dtype=np.uint64))
    return made[0], made[1]


def _scrambled(values: np.ndarray) -> np.ndarray:
    """Spread every bit over all others, in place; sums of what is left as it is would cancel out."""
    for shift in (32, 29):
        values ^= values >> np.uint64(shift)
        values *= SCRAMBLE
    values ^= values >> np.uint64(32)
    return values


@dataclass(frozen=True)
class Words:
    """The words of a batch of rows."""

    text: np.ndarray
    """Normalised bytes (UTF-8), uint8; a space between words, `BORDER` after each row, eight bytes of space around."""

    starts: np.ndarray
    """Where each word begins in it."""

    ends: np.ndarray
    """Where each word ends."""

    order: np.ndarray
    """Number in the batch of each row, in the order in which they stand in `text`."""

    @cached_property
    def borders(self) -> np.ndarray:
        """Numbers of the words that end a row."""
        return np.flatnonzero(self.text[self.starts] == BORDER)

    def row_of(self, words: np.ndarray) -> np.ndarray:
        """Return the row, by its number in the batch, of each of these words."""
        rows: np.ndarray = self.order[np.searchsorted(self.borders, words)]
        return rows

    @cached_property
    def _hashes(self) -> np.ndarray:
        """Return a hash of each word: of its length, its first eight and its last eight bytes; uint64."""
        eights = np.ndarray(len(self.text) - 7, dtype="<u8", buffer=self.text.data, strides=(1,))
        lengths = self.ends - self.starts
        unused = np.maximum(8 - lengths, 0).astype(np.uint64) * np.uint64(8)
        firsts = eights[self.starts] << unused  # drops what stands after a short word
        lasts = eights[self.ends - 8] >> unused  # and what stands before it
        return _scrambled(firsts + _scrambled(lasts + lengths.astype(np.uint64)))

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of `hash[i] * BASE^i` up to each word, and the inverse powers."""
        powers, inverses = _powers(max(len(self.starts).bit_length(), 16))
        sums = np.zeros(len(self.starts) + 1, dtype=np.uint64)
        np.cumsum(self._hashes * powers[: len(self.starts)], dtype=np.uint64, out=sums[1:])
        return sums, inverses

    def runs(self, length: int) -> np.ndarray:
        """Return the 64-bit hash of every run of that many words, by its first word; uint64."""
        count = max(len(self.starts) - length + 1, 0)
        sums, inverses = self._sums
        hashes: np.ndarray = (sums[length : length + count] - sums[:count]) * inverses[:count]
        return hashes

    def spelt(self, first: int, length: int) -> bytes:
        """Return a run of words, a space between them."""
        return b" ".join(self.text[self.starts[first] : self.ends[first + length - 1]].tobytes().split())


def words_of(texts: pa.Array) -> Words:
    """Split texts into normalised words.

    Args:
        texts: one string a row, without nulls; less than 2 GB together.
    """
    mark = chr(BORDER)
    texts = texts.cast(pa.string())  # of any string type
    if pc.any(pc.match_substring(texts, mark)).as_py():
        texts = pc.replace_substring(texts, mark, " ")
    plain = pc.string_is_ascii(texts)
    ascii_rows = plain.to_numpy(zero_copy_only=False).astype(bool)
    rows = pc.binary_join_element_wise(texts, f" {mark} ", "")
    ascii_bytes = BYTES[_content(rows.filter(plain))]
    parts = [np.full(8, SPACE, dtype=np.uint8), ascii_bytes[ascii_bytes != 0]]
    if not ascii_rows.all():
        content = _content(rows.filter(pc.invert(plain))).tobytes().decode()
        characters = _characters()[np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)]
        folded = characters[characters != 0].tobytes().decode("utf-32-le").encode()
        parts.append(np.frombuffer(folded, dtype=np.uint8))
    text = np.concatenate([*parts, parts[0]])
    inside = text != SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    order = np.concatenate([np.flatnonzero(ascii_rows), np.flatnonzero(~ascii_rows)])
    return Words(text, edges[::2], edges[1::2], order)


def _content(texts: pa.Array) -> np.ndarray:
    """Return the bytes of all strings of an array, one after the other."""
    _, offsets, content = texts.buffers()
    if not len(texts) or content is None:
        return np.zeros(0, dtype=np.uint8)
    first, last = np.frombuffer(offsets, dtype=np.int32)[[texts.offset, texts.offset + len(texts)]]
    return np.frombuffer(content, dtype=np.uint8)[first:last]


def fold(text: str) -> str:
    """Return the normalised words of one text, a space between them.

    >>> fold("The  Café’s “opening”, at 9:30!")
    'the cafes opening at 930'
    """
    words = words_of(pa.array([text]))
    return words.spelt(0, len(words.starts) - 1).decode() if len(words.starts) > 1 else ""


def joined_turns(messages: pa.Array) -> pa.Array:
    """Return the text of each conversation, its turns joined by a space: a run may go over the border of two turns.

    Args:
        messages: list of {role, content} a row.
    """
    turns = messages.flatten()
    contents = pc.fill_null(pc.struct_field(turns, "content"), "")
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), contents), " ")
