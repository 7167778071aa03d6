"""Encoding of rendered conversations: token ids, and the places that are trained on.

The whole text is encoded at once, as it would be for generation. Where that would join a header with the text after it
into one token, or make a control token of a text that spells one, a row is encoded in pieces.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer

from tometune.data.template import Messages, Rendered, Template

Encoded = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the [start, end) of the tokens that are trained on."""


def settled(backend: Any) -> Any:
    """Return the backend without what calls leave on it: cutting and padding. transformers sets both on each call."""
    backend.no_truncation()
    backend.no_padding()
    return backend


class Encoder:
    """Two copies of a tokenizer's backend: one for control tokens, one for which there are none.

    Copies, since a switch of the one tokenizer would also act on the batch that another thread is encoding.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        backend = settled(template.tokenizer.backend_tokenizer).to_str()
        self._backend, self._plain = Tokenizer.from_str(backend), Tokenizer.from_str(backend)
        self._backend.encode_special_tokens = False
        self._plain.encode_special_tokens = True
        self._controls = {number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """Return token ids and trained places, uncut."""
        return self.placed(rendered, self.encodings(rendered))

    def encodings(self, rendered: list[Rendered]) -> list[Any]:
        """Return the encodings of the texts as they are, on every core."""
        encodings: list[Any] = self._backend.encode_batch([row.text for row in rendered], add_special_tokens=False)
        return encodings

    def placed(self, rendered: list[Rendered], encodings: list[Any]) -> list[Encoded]:
        """Return the token ids of encodings, and the tokens that are trained on."""
        result = []
        for row, encoding in zip(rendered, encodings, strict=True):
            places = None if row.stand_ins else _places(encoding, row)
            result.append(self._apart(row) if places is None else (encoding.ids, places))
        return result

    def _apart(self, row: Rendered) -> Encoded:
        """Encode control tokens and the texts between them one by one; what stands in for others stays text."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        controls = [match.span() for match in self.template.special.finditer(row.text)]
        edges = sorted({0, len(row.text), *(edge for span in [*row.spans, *controls] for edge in span)})
        starts = {start for start, _ in controls}
        reached = {0: 0}
        for start, end in pairwise(edges):
            backend = self._backend if start in starts else self._plain
            ids += backend.encode(row.spelt(start, end), add_special_tokens=False).ids
            reached[end] = len(ids)
        places = [(reached[start], reached[end]) for start, end in row.spans]
        return ids, places

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens, control tokens spelt out."""
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text

    def round_trip(self, text: str) -> str:
        """Return what is left of a text that was encoded and decoded."""
        return self.decode(self._plain.encode(text, add_special_tokens=False).ids)

    def controls(self, ids: list[int]) -> int:
        """Count the control tokens."""
        return sum(number in self._controls for number in ids)


def _places(encoding: Any, row: Rendered) -> list[tuple[int, int]] | None:
    """Return the tokens of the character spans; None if a span does not begin and end where a token does."""
    places = []
    for start, end in row.spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None or encoding.token_to_chars(first)[0] != start:
            return None
        while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == encoding.token_to_chars(last):
            last += 1  # one character of several byte tokens
        stop = encoding.token_to_chars(last)[1]
        if stop < end or row.text[end:stop].strip():  # some end-of-turn tokens swallow the white space after them
            return None
        places.append((first, last + 1))
    return places


BATCH, CHARACTERS = 1_000, 2_000_000
"""Rows that are encoded together at most, and their characters: an encoding takes some hundred bytes a token."""

AHEAD = 2
"""Batches that wait for the encoder."""


@dataclass(frozen=True)
class Batch:
    """Rows that are encoded together."""

    start: int
    """Number of the first one."""

    conversations: list[Messages]
    rendered: list[Rendered]
    clipped: list[Rendered]
    """The same texts without what can only lie beyond `max_length` tokens."""

    encoded: list[Encoded]


def encoded(rows: Dataset, template: Template, encoder: Encoder, max_length: int) -> Iterator[Batch]:
    """Yield rows in batches.

    The encoder (Rust, every core) works on the next batches in a thread while Python renders and stores others.
    """
    waiting: deque[tuple[Batch, Future[list[Any]]]] = deque()
    longest = max_length * max(map(len, template.tokenizer.get_vocab()))
    with ThreadPoolExecutor(1) as thread:
        for start, conversations in _batches(rows):
            rendered = template.render(conversations)
            clipped = [_clip(row, longest) for row in rendered]
            batch = Batch(start, conversations, rendered, clipped, [])
            waiting.append((batch, thread.submit(encoder.encodings, clipped)))
            if len(waiting) > AHEAD:
                yield _finished(encoder, *waiting.popleft(), max_length)
        while waiting:
            yield _finished(encoder, *waiting.popleft(), max_length)


def _batches(rows: Dataset) -> Iterator[tuple[int, list[Messages]]]:
    """Yield conversations in batches of `BATCH` rows or `CHARACTERS` characters, with the number of the first."""
    for start in range(0, len(rows), BATCH):
        begin, size, batch = start, 0, []
        for messages in rows[start : start + BATCH]["messages"]:
            batch.append(messages)
            size += sum(len(message["content"]) for message in messages)
            if size > CHARACTERS:
                yield begin, batch
                begin, size, batch = begin + len(batch), 0, []
        if batch:
            yield begin, batch


def _clip(row: Rendered, longest: int) -> Rendered:
    """Return a row without the characters behind `longest`, where `max_length` of the longest tokens would end."""
    if len(row.text) <= longest:
        return row
    spans = [(start, min(end, longest)) for start, end in row.spans if start < longest]
    return replace(row, text=row.text[:longest], spans=spans)


def _finished(encoder: Encoder, batch: Batch, future: Future[list[Any]], max_length: int) -> Batch:
    """Wait for the encodings of a batch and place the labels; a clipped row with too few tokens is encoded whole."""
    placed = encoder.placed(batch.clipped, future.result())
    for number, (whole, clipped) in enumerate(zip(batch.rendered, batch.clipped, strict=True)):
        if clipped is not whole and len(placed[number][0]) <= max_length:
            (placed[number],) = encoder.encode([whole])
    return replace(batch, encoded=placed)
