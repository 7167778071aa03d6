"""Tokenised rows of a source: each row once, whichever mixes take it.

The rows that a mix needs and no earlier one had make pieces: rows.arrow with those that train something, and index.npy
with a line for each. So the cells of a table share the tokens of their base and of the pool's rows, and a kill costs a
piece at most.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from filelock import FileLock

from tometune.common.cache import cached_folder
from tometune.data.batches import encoded
from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Template
from tometune.data.verify import verify

log = logging.getLogger(__name__)

IGNORE = -100
"""Label of a token that is not trained on, PyTorch's `ignore_index`."""

PIECE = 50_000
"""Rows of a piece, at most."""

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
        assert (found[:, 0] == chosen).all(), "every chosen row was tokenised"
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
    kind = f"tokens/{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]}"
    found = _together(cache / kind)
    if np.isin(part.chosen, found.index[:, 0]).all():
        return found
    (cache / kind).mkdir(parents=True, exist_ok=True)
    with FileLock(cache / kind / ".lock"):  # others at the same rows wait, and then find them
        for left in (cache / kind).glob(".*/"):  # of a process that was killed: nobody else is at it
            shutil.rmtree(left, ignore_errors=True)
        missing = np.setdiff1d(part.chosen, _together(cache / kind, mend=True).index[:, 0])
        for start in range(0, len(missing), PIECE):
            numbers = missing[start : start + PIECE]
            rows = {"count": len(numbers), "sha256": sha256(numbers.astype("<i8").tobytes()).hexdigest()[:20]}
            build = partial(_build, part.rows.select(numbers), numbers, template, max_length)
            cached_folder(cache, kind, {**key, "rows": rows}, build)
            log.info("%s of %s rows tokenised", f"{start + len(numbers):,}", f"{len(missing):,}")
    return _together(cache / kind)


def _together(folder: Path, mend: bool = False) -> Tokenised:
    """Put the pieces together; of a row that two machines tokenised at once, the first is taken.

    Args:
        folder: of the pieces.
        mend: remove a piece that cannot be read, so that its rows are made again; else it counts as not there.
    """
    tables, indexes, length = [], [np.empty((0, len(INDEX)), dtype=np.int64)], 0
    for piece in sorted(path.parent for path in folder.glob("[!.]*/config.json")):
        try:
            index, table = np.load(piece / "index.npy"), Dataset.from_file(str(piece / "rows.arrow"))
        except (OSError, EOFError, ValueError, pa.ArrowException):
            log.warning("%s: cannot be read; its rows are tokenised again", piece)
            if mend:
                shutil.rmtree(piece)
            continue
        index[:, 1] += np.where(index[:, 1] >= 0, length, 0)
        tables.append(table)
        length += len(table)
        indexes.append(index)
    together = np.concatenate(indexes)
    _, first = np.unique(together[:, 0], return_index=True)
    return Tokenised(concatenate_datasets(tables) if length else None, together[first])


def _build(rows: Dataset, numbers: np.ndarray, template: Template, max_length: int, folder: Path) -> None:
    """Write rows.arrow and index.npy of a piece."""
    encoder = Encoder(template)
    checked = set(np.linspace(0, len(rows) - 1, CHECKED, dtype=int).tolist())
    lines, place = [], 0
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in encoded(rows.select_columns("messages"), template, encoder, max_length):
            stop = batch.start + len(batch.encoded)
            for number in checked.intersection(range(batch.start, stop)):
                row = number - batch.start
                if batch.rendered[row] is batch.clipped[row]:
                    sure = (batch.conversations[row], batch.rendered[row], batch.encoded[row])
                    verify(encoder, *sure, int(numbers[number]))
            table, index = _arrow(batch.encoded, max_length)
            index[:, 0] = numbers[batch.start : stop]
            index[index[:, 1] >= 0, 1] += place
            index[:, 5] = [bool(row.stand_ins) for row in batch.rendered]
            lines.append(index)
            place += len(table)
            writer.write_batch(table)
    np.save(folder / "index.npy", np.concatenate(lines))


def _arrow(rows: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Return the rows that train something, with labels, and the batch's lines of the index, rows not yet named."""
    index = np.zeros((len(rows), len(INDEX)), dtype=np.int64)
    # The first token is never predicted, so a label there trains nothing.
    trains = np.array(
        [any(end > 1 and max(start, 1) < max_length for start, end in places) for _, places in rows], dtype=bool
    )
    kept = [row for row, trained in zip(rows, trains, strict=True) if trained]
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
    index[:, 4] = [max(0, len(ids) - max_length) for ids, _ in rows]
    columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for flat in (tokens, labels)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), index
