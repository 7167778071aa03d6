"""Tokenised rows of a source: each row once, whichever mixes take it.

The rows that a mix needs and no earlier one had make a piece: rows.arrow with those that train something, and index.npy
with a line for each. So the cells of a table share the tokens of their base and of the pool's rows.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from tometune.caching import cached_folder
from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Messages, Rendered, Template
from tometune.data.verify import verify

log = logging.getLogger(__name__)

IGNORE = -100
"""Label of a token that is not trained on, PyTorch's `ignore_index`."""

BATCH = 1_000
AHEAD = 2
"""Batches that wait for the encoder."""

TOLD = 50_000
"""Rows after which the log tells how far it is; a multiple of `BATCH`."""

CHECKED = 200
"""Rows of a piece whose labels are decoded and compared when it is made."""

SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})

INDEX = ("row", "place", "tokens", "trained", "cut", "special")
"""Of a row: its number in the source; its place in `rows`, -1 where it has nothing to train on and is left out; its
tokens after cutting (0 if left out); those with a label; tokens cut off; whether its texts spell a special token."""


@dataclass(frozen=True)
class Part:
    """What a mix takes of a source."""

    fingerprint: str
    """Of the source's content."""

    rows: Dataset
    """All of its rows, with a column `messages`."""

    chosen: np.ndarray
    """Row numbers, in the order of the mix."""


@dataclass(frozen=True)
class Tokenised:
    """Rows of a source, tokenised."""

    rows: Dataset | None
    """Columns `input_ids` and `labels`, memory-mapped; None where no row trains anything."""

    index: np.ndarray
    """Shape (rows, len(INDEX)), int64, by row number; each row is there once."""

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """Return the lines of the index for these row numbers, in their order."""
        found: np.ndarray = self.index[np.searchsorted(self.index[:, 0], chosen)]
        return found


def tokenised(part: Part, made_by: dict[str, Any], template: Template, max_length: int, cache: Path) -> Tokenised:
    """Return the tokenised rows of a source, the chosen ones among them, from the cache or made now.

    Args:
        part: the source and what is taken of it.
        made_by: all that makes the tokens beside the rows, as plain values.
        template: of the tokenizer.
        max_length: tokens a row may have; what is longer is cut at the end.
        cache: root of the cache.

    Raises:
        RuntimeError: the labels do not decode to the assistant's texts.
    """
    key = {"source": part.fingerprint, **made_by}
    kind = f"tokens/{sha256(repr(sorted(key.items())).encode()).hexdigest()[:20]}"
    found = _together(cache / kind)
    missing = np.setdiff1d(part.chosen, found.index[:, 0])
    if not len(missing):
        return found
    rows = {"count": len(missing), "sha256": sha256(missing.astype("<i8").tobytes()).hexdigest()[:20]}
    cached_folder(
        cache, kind, {**key, "rows": rows}, lambda folder: _build(part, missing, template, max_length, folder)
    )
    return _together(cache / kind)


def _together(folder: Path) -> Tokenised:
    """Put the pieces together; of a row that two processes tokenised at once, the first is taken."""
    tables, indexes, length = [], [np.empty((0, len(INDEX)), dtype=np.int64)], 0
    for piece in sorted(path.parent for path in folder.glob("[!.]*/config.json")):
        index = np.load(piece / "index.npy")
        if (index[:, 1] >= 0).any():
            table = Dataset.from_file(str(piece / "rows.arrow"))
            index[:, 1] += np.where(index[:, 1] >= 0, length, 0)
            tables.append(table)
            length += len(table)
        indexes.append(index)
    together = np.concatenate(indexes)
    _, first = np.unique(together[:, 0], return_index=True)
    return Tokenised(concatenate_datasets(tables) if tables else None, together[first])


def _build(part: Part, missing: np.ndarray, template: Template, max_length: int, folder: Path) -> None:
    """Write rows.arrow and index.npy."""
    encoder = Encoder(template)
    wanted = part.rows.select(missing)
    checked = set(np.linspace(0, len(missing) - 1, CHECKED, dtype=int).tolist())
    lines, place = [], 0
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for start, conversations, rendered, encoded in _encoded(wanted, template, encoder):
            for number in checked.intersection(range(start, start + len(encoded))):
                row = number - start
                verify(encoder, conversations[row], rendered[row], encoded[row], int(missing[number]))
            batch, index = _arrow(encoded, max_length)
            kept = index[:, 1] >= 0
            index[:, 0] = missing[start : start + len(encoded)]
            index[kept, 1] += place
            index[:, 5] = [bool(row.stand_ins) for row in rendered]
            lines.append(index)
            place += len(batch)
            writer.write_batch(batch)
            done = start + len(encoded)
            if done % TOLD == 0 or done == len(missing):
                log.info("%s of %s rows tokenised", f"{done:,}", f"{len(missing):,}")
    np.save(folder / "index.npy", np.concatenate(lines))


def _encoded(
    rows: Dataset, template: Template, encoder: Encoder
) -> Iterator[tuple[int, list[Messages], list[Rendered], list[Encoded]]]:
    """Yield rows in batches: number of the first one, conversations, their texts, their tokens.

    The encoder (Rust, every core) works on the next batches in a thread while Python renders and stores others.
    """
    waiting: deque[tuple[int, list[Messages], list[Rendered], Future[list[Any]]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for start in range(0, len(rows), BATCH):
            conversations = rows[start : start + BATCH]["messages"]
            rendered = template.render(conversations)
            waiting.append((start, conversations, rendered, thread.submit(encoder.encodings, rendered)))
            if len(waiting) > AHEAD:
                yield _finished(encoder, *waiting.popleft())
        while waiting:
            yield _finished(encoder, *waiting.popleft())


def _finished(
    encoder: Encoder, start: int, conversations: list[Messages], rendered: list[Rendered], future: Future[list[Any]]
) -> tuple[int, list[Messages], list[Rendered], list[Encoded]]:
    """Wait for the encodings of a batch and place the labels."""
    return start, conversations, rendered, encoder.placed(rendered, future.result())


def _arrow(encoded: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Return the rows that train something, with labels, and the batch's lines of the index, rows not yet named."""
    index = np.zeros((len(encoded), len(INDEX)), dtype=np.int64)
    # The first token is never predicted, so a label there trains nothing.
    trains = np.array(
        [any(end > 1 and max(start, 1) < max_length for start, end in places) for _, places in encoded], dtype=bool
    )
    kept = [row for row, trained in zip(encoded, trains, strict=True) if trained]
    lengths = np.array([0, *(min(len(ids), max_length) for ids, _ in kept)], dtype=np.int32)
    offsets = np.cumsum(lengths, dtype=np.int32)
    tokens = np.fromiter(chain.from_iterable(ids[:max_length] for ids, _ in kept), dtype=np.int32, count=offsets[-1])
    labels = np.full(len(tokens), IGNORE, dtype=np.int32)
    for (_, places), first, stop in zip(kept, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for start, end in places:
            trained = slice(first + start, min(first + end, stop))
            labels[trained] = tokens[trained]
    index[:, 1] = np.where(trains, np.cumsum(trains) - 1, -1)
    index[trains, 2] = lengths[1:]
    if kept:
        index[trains, 3] = np.add.reduceat(labels != IGNORE, offsets[:-1])
    index[:, 4] = [max(0, len(ids) - max_length) for ids, _ in encoded]
    columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for flat in (tokens, labels)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), index
