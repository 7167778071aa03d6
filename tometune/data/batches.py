"""Conversations rendered and encoded in batches, on every core, in bounded memory whatever their lengths."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Messages, Rendered, Template

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
