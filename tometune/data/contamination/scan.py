"""Looks through the rows of a source for the runs of an index, on every core."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tometune.data.contamination.index import Index
from tometune.data.contamination.words import Words, joined_turns, words_of
from tometune.data.parallel import cores

ROWS = 2_000
"""Rows looked through at once: their words fit into a processor's cache."""

HEAVY = 2**26
"""Bytes of which a batch has no more, but for a row that is longer: Arrow's strings end at 2 GB."""

Hits = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, places and runs, as in `Found`."""

NONE = np.zeros(0, dtype=np.int64)
NOTHING: Hits = (NONE, NONE, NONE)


@dataclass(frozen=True)
class Found:
    """Each place in a source that holds a run of an evaluation text; arrays of int64, by row and place."""

    rows: np.ndarray
    """Row of the source."""

    places: np.ndarray
    """Where the run begins: of two that follow each other in one row the places differ by 1."""

    runs: np.ndarray
    """Number of the run in the index."""


def scan(index: Index, messages: pa.ChunkedArray) -> Found:
    """Find the runs of an index in conversations.

    NumPy and Arrow work outside of Python's lock, so threads are enough (docs/contamination.md has the figures).

    Args:
        index: what is looked for.
        messages: a list of {role, content} a row; may be memory-mapped, of which a few batches at a time are read.
    """
    with ThreadPoolExecutor(cores()) as threads:
        parts = [NOTHING, *threads.map(lambda batch: _scan(index, *batch), _batches(messages))]
    rows, places, runs = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return Found(rows[order], places[order], runs[order])


def _batches(messages: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """Yield the rows in batches, each with the number of its first row."""
    start = 0
    for chunk in messages.chunks:
        for offset in range(0, len(chunk), ROWS):
            yield from _halved(start + offset, chunk.slice(offset, ROWS))
        start += len(chunk)


def _halved(first: int, rows: pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Yield the rows in as many parts as their weight asks for."""
    if rows.nbytes <= HEAVY or len(rows) < 2:
        yield first, rows
        return
    half = len(rows) // 2
    yield from _halved(first, rows.slice(0, half))
    yield from _halved(first + half, rows.slice(half))


def _scan(index: Index, first: int, messages: pa.Array) -> Hits:
    """Look through one batch."""
    words = words_of(joined_turns(messages))
    found = [_same(index, words, *table.find(words.runs(table.length))) for table in index.tables]
    places = np.concatenate([NONE, *(places for places, _ in found)])
    runs = np.concatenate([NONE, *(runs for _, runs in found)])
    order = np.argsort(places, kind="stable")
    places, runs = places[order], runs[order]
    base = first << 32  # a batch has fewer words than that
    return words.row_of(places) + first, places + base, runs


def _same(index: Index, words: Words, places: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the places whose words, not only their hash, are those of the run."""
    same = [
        words.spelt(place, int(index.run_lengths[run])) == index.spelt(run)
        for place, run in zip(places.tolist(), runs.tolist(), strict=True)
    ]
    chosen = np.array(same, dtype=bool)
    return places[chosen], runs[chosen]
