"""What was found in a source, kept in the cache; and what of it is in a mix."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.common.cache import cached_folder
from tometune.data.contamination.index import HeldOutText, Index, index_of
from tometune.data.contamination.judge import judge
from tometune.data.contamination.scan import scan
from tometune.data.standardise import Standardised

log = logging.getLogger(__name__)

VERSION = 1
"""Raised when the same source and the same texts give other overlaps."""

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.binary(),
        "source": pa.string(),
        "task": pa.string(),
        "example": pa.string(),
        "words": pa.int32(),
        "shared": pa.string(),
    }
)

SHOWN = 5
"""Examples that a report shows of a task."""


class HeldOut:
    """The texts of the evaluation, indexed once they are needed."""

    def __init__(self, texts: Sequence[tuple[str, str, str]]) -> None:
        """Take (task, example, text) of every text that training data must not hold."""
        self.texts = [HeldOutText(*text) for text in texts]
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The index of the texts."""
        if self._index is None:
            self._index = index_of(self.texts)
        return self._index

    @property
    def digest(self) -> str:
        """Hash of the texts and of whose they are."""
        digest = sha256()
        for text in self.texts:
            for part in text:
                digest.update(f"{len(part)}:{part}".encode())
        return digest.hexdigest()[:20]


def overlaps(source: Standardised, held_out: HeldOut, cache: Path) -> pa.Table:
    """Return the overlaps of all rows of a source, from the cache or looked for now.

    They depend on the source and the texts alone: mixes of any size over the same source share them, and what is a
    stock phrase in one is one in the others.

    Returns:
        A table of `SCHEMA`, a row for each row of the source and example that it shares words with.
    """
    key = {"source": source.fingerprint, "texts": held_out.digest, "overlaps": VERSION}
    folder = cached_folder(cache, "overlaps", key, lambda target: _build(source, held_out.index, target))
    with pa.memory_map(str(folder / "rows.arrow")) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def _build(source: Standardised, index: Index, folder: Path) -> None:
    """Write rows.arrow."""
    start = perf_counter()
    table = source.rows.data
    found = scan(index, table.column("messages"))
    keys = _taken(table, "key", pa.array(found.rows)).dictionary_encode()
    longest: dict[tuple[int, str, str], tuple[int, str]] = {}
    for overlap in judge(index, found, keys.indices.to_numpy().astype(np.int64)):
        for task, example in index.owners[overlap.text]:
            entry = (overlap.words, overlap.shared)
            longest[overlap.row, task, example] = max(longest.get((overlap.row, task, example), entry), entry)
    rows = pa.array([row for row, _, _ in longest], type=pa.int64())
    columns = {
        "row": rows,
        "key": pc.cast(_taken(table, "key", rows), pa.binary()),
        "source": _taken(table, "source", rows),
        "task": [task for _, task, _ in longest],
        "example": [example for _, _, example in longest],
        "words": [words for words, _ in longest.values()],
        "shared": [shared for _, shared in longest.values()],
    }
    made = pa.table(columns, schema=SCHEMA)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(made)
    seconds = perf_counter() - start
    count = len(source.rows)
    log.info("%s rows looked through for evaluation texts in %.1f s (%s a second)",
        f"{count:,}", seconds, f"{count / max(seconds, 1e-9):,.0f}")  # fmt: skip


def _taken(table: pa.Table, name: str, rows: pa.Array) -> pa.Array:
    """Return some values of a column."""
    taken = table.column(name).take(rows)
    return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken


def overlapping(source: Standardised, held_out: HeldOut, cache: Path) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Return which rows of a source overlap (bool), and how many by task and source; such a row may be in two tasks."""
    table = overlaps(source, held_out, cache)
    mask = np.zeros(len(source.rows), dtype=bool)
    mask[table.column("row").to_numpy()] = True
    once = table.group_by(["row", "task", "source"]).aggregate([])
    counts: dict[str, Counter[str]] = {}
    for task, name in zip(once.column("task").to_pylist(), once.column("source").to_pylist(), strict=True):
        counts.setdefault(task, Counter())[name] += 1
    return mask, {task: dict(by_source.most_common()) for task, by_source in sorted(counts.items())}


@dataclass(frozen=True)
class MixOverlaps:
    """The rows of a mix that overlap."""

    rows: int
    """Rows of the mix."""

    overlapping: int
    """Rows that overlap any example."""

    counts: dict[str, dict[str, int]]
    """Rows by task and source."""

    touched: dict[str, int]
    """Examples by task that some row overlaps."""

    examples: dict[str, int]
    """Examples by task."""

    too_short: dict[str, int]
    """Texts by task that are too short to be looked for."""

    shown: list[dict[str, Any]]
    """A few of them by task, longest first: `task, example, origin, source, row_id, words, shared`."""


def of_mix(row_ids: Sequence[str], found: Mapping[str, pa.Table], held_out: HeldOut) -> MixOverlaps:
    """Return the overlaps of a mix.

    Args:
        row_ids: of the mix.
        found: `overlaps` by origin, `base` and `pool`.
        held_out: what was looked for.
    """
    wanted = {f"{origin}:{key.hex()}" for origin, table in found.items() for key in table.column("key").to_pylist()}
    copies = Counter(name for row_id in row_ids if (name := row_id.partition("-")[0]) in wanted)
    counts: dict[str, Counter[str]] = {}
    touched: dict[str, set[str]] = {}
    longest: dict[tuple[str, str], dict[str, Any]] = {}
    for origin, table in found.items():
        for entry in table.to_pylist():
            row_id = f"{origin}:{entry['key'].hex()}"
            if row_id not in copies:
                continue
            task = entry["task"]
            touched.setdefault(task, set()).add(entry["example"])
            first = longest.setdefault((row_id, task), {**entry, "origin": origin, "row_id": row_id})
            if entry["words"] > first["words"]:
                longest[row_id, task] = {**entry, "origin": origin, "row_id": row_id}
    for (row_id, task), entry in longest.items():
        counts.setdefault(task, Counter())[entry["source"]] += copies[row_id]
    in_order = sorted(longest.values(), key=lambda entry: (entry["task"], -entry["words"], entry["row_id"]))
    by_task = {task: [entry for entry in in_order if entry["task"] == task][:SHOWN] for task in sorted(counts)}
    names = ("task", "example", "origin", "source", "row_id", "words", "shared")
    index = held_out.index
    return MixOverlaps(
        len(row_ids),
        sum(copies.values()),
        {task: dict(counts[task].most_common()) for task in sorted(counts)},
        {task: len(examples) for task, examples in sorted(touched.items())},
        index.examples,
        index.too_short,
        [{name: entry[name] for name in names} for entries in by_task.values() for entry in entries],
    )
