"""Sources as role/content messages, each row with a 128-bit key of its text, cached as Arrow.

A cached source is a folder with `rows.arrow` (key, source, messages) and small files with everything else that a warm
start needs: `keys.npy` (16 bytes per row), `labels.npy` and `labels.json` (the source of each row), `scores.npy` (if
any row has a score) and `counts.json`.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import SourceConfig
from tometune.data import formats
from tometune.data.conversations import encodable, fix_conversation, normalised
from tometune.data.parallel import in_order
from tometune.data.readers import Batch
from tometune.data.sources import fingerprint, read

if TYPE_CHECKING:  # worker processes import this module, and `datasets` takes them a second
    from datasets import Dataset

log = logging.getLogger(__name__)

VERSION = 4  # raised when the same source gives other rows
LAYOUT = 2  # raised when the same rows are stored in other files

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = pa.schema({"key": pa.binary(), "source": pa.string(), "messages": MESSAGES})
KEY_BYTES = 16
LARGEST_SCORE = float(np.finfo(np.float32).max)

Counts = dict[str, dict[str, int]]  # rows by reason and source


@dataclass(frozen=True)
class Standardised:
    """The usable rows of a source, in its order."""

    fingerprint: str  # content of the source, format, and version of the standardising
    folder: Path
    rows: "Dataset"  # columns `key` (16 bytes), `source`, `messages`; memory-mapped
    keys: np.ndarray  # (rows, 2) uint64: the 128 bits of each key, higher half first
    labels: np.ndarray  # (rows,) int32: the source of each row as an index into `names`
    names: list[str]  # sorted
    scores: np.ndarray | None  # (rows,) float32, NaN for rows without a score; None if no row has one
    read: int  # rows of the source, usable or not
    dropped: Counts
    mended: Counts  # rows that were fixed


def standardise(source: SourceConfig, key: str, cache: Path) -> Standardised:
    """Return the usable rows of a source, cached; `key` is its key in the config, for errors.

    Raises:
        UserError: the source is missing, broken or of an unknown shape.
    """
    from datasets import Dataset

    made_from = {"source": fingerprint(source, key), "format": str(source.format), "standardise": VERSION}
    stored_as = {**made_from, "layout": LAYOUT, "score": source.score}
    folder = cached_folder(cache, "sources", stored_as, lambda target: _build(source, key, target))
    scores = folder / "scores.npy"
    return Standardised(
        fingerprint="{source}/{format}/v{standardise}".format(**made_from),
        folder=folder,
        rows=Dataset.from_file(str(folder / "rows.arrow")),
        keys=np.load(folder / "keys.npy").view(">u8").astype(np.uint64),
        labels=np.load(folder / "labels.npy"),
        names=json.loads((folder / "labels.json").read_text(encoding="utf-8")),
        scores=np.load(scores) if scores.exists() else None,
        **json.loads((folder / "counts.json").read_text(encoding="utf-8")),
    )


def _build(source: SourceConfig, key: str, folder: Path) -> None:
    keys, labels, scores = bytearray(), list[int](), [np.empty(0, np.float32)]
    names: dict[str, int] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    total = 0
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress(f"{key}: rows standardised") as advance,
    ):
        for rows, more_scores, more_counts, count in in_order(
            partial(standardise_batch, source=source), read(source, key)
        ):
            writer.write_batch(rows)
            keys += b"".join(rows.column("key").to_pylist())
            labels += [names.setdefault(name, len(names)) for name in rows.column("source").to_pylist()]
            scores.append(more_scores)
            counts.update(more_counts)
            total += count
            advance(count)
    np.save(folder / "keys.npy", np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES))
    ordered = sorted(names)
    places = np.array([ordered.index(name) for name in names], dtype=np.int32)
    np.save(folder / "labels.npy", places[np.array(labels, dtype=np.int32)])
    (folder / "labels.json").write_text(json.dumps(ordered), encoding="utf-8")
    score = np.concatenate(scores)
    if not np.isnan(score).all():
        np.save(folder / "scores.npy", score)
    nested: dict[str, Counts] = {"dropped": {}, "mended": {}}
    for (change, reason, name), count in counts.items():
        nested[change].setdefault(reason, {})[name] = count
    (folder / "counts.json").write_text(json.dumps({"read": total, **nested}), encoding="utf-8")
    log.info("%s: %s rows standardised", key, f"{total:,}")


def standardise_batch(
    batch: Batch, source: SourceConfig
) -> tuple[pa.RecordBatch, np.ndarray, Counter[tuple[str, str, str]], int]:
    """Standardise a batch of rows, in any process.

    Returns:
        The usable rows, of `SCHEMA`; their scores, float32, NaN for rows without one; counts of dropped and fixed
        rows by (change, reason, source); and the number of rows in the batch.

    Raises:
        UserError: a row does not match the source's format; names it.
    """
    read_turns = formats.reader(formats.format_of(batch.rows, source.format, batch.origin))
    counts: Counter[tuple[str, str, str]] = Counter()
    keys, names, conversations, scores = [], [], [], []
    for index, row in enumerate(batch.rows):
        try:
            turns, reasons = fix_conversation(read_turns(row))
        except formats.FormatError as error:
            raise UserError(f"{batch.where(index)}: {error}") from None
        named = (row.get(column) for column in ("source", "dataset"))
        name = next((encodable(value) for value in named if isinstance(value, str) and value), None)
        name = name or source.id or str(source.kind)
        counts.update(("mended" if turns else "dropped", reason, name) for reason in sorted(reasons))
        if turns:
            keys.append(text_key(text for _, text in turns))
            names.append(name)
            conversations.append([{"role": role, "content": text} for role, text in turns])
            scores.append(_score(row.get(source.score)))
    columns = [pa.array(keys, pa.binary()), pa.array(names, pa.string()), pa.array(conversations, MESSAGES)]
    rows = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    return rows, np.array(scores, np.float32), counts, len(batch)


def text_key(texts: Iterable[str]) -> bytes:
    """Return the 128-bit BLAKE2b hash of a conversation's normalised text."""
    return blake2b(normalised(texts).encode(), digest_size=KEY_BYTES).digest()


def _score(value: Any) -> float:
    """Return a row's score, or NaN for anything that is not a number or does not fit into a float32."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    return float(value) if value in (math.inf, -math.inf) or abs(value) <= LARGEST_SCORE else math.nan
