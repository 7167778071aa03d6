"""A batch of a source as standardised rows: the work that is done on every core."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import RowFormat, SourceConfig
from tometune.data import formats
from tometune.data.columns import MESSAGES, Conversations, conversations
from tometune.data.conversations import encodable, mend, normalised
from tometune.data.parallel import in_order
from tometune.data.readers import Batch, Row, plain, simplified
from tometune.data.sources import fingerprint, read

SCHEMA = pa.schema({"key": pa.binary(), "source": pa.string(), "messages": MESSAGES})

KEY_BYTES = 16

LABELS = ("source", "dataset")
"""Columns that say where a row is from."""


@dataclass(frozen=True)
class Piece:
    """A batch, standardised."""

    rows: pa.RecordBatch
    """Usable rows, of `SCHEMA`."""

    scores: np.ndarray
    """Shape (usable rows), float32; NaN where a row came without."""

    places: np.ndarray
    """Shape (usable rows): their places in the batch."""

    read: int
    """Rows of the batch."""

    dropped: dict[str, Counter[str]]
    """Rows left out, by reason, by source."""

    mended: dict[str, Counter[str]]
    """Rows changed, by reason, by source."""


def standardised(batch: Batch, source: SourceConfig) -> Piece:
    """Standardise a batch: whole columns where rows are in order, row by row where they are not.

    Raises:
        UserError: a row is not of the source's format; names it.
    """
    fallback = source.id or str(source.kind)
    if isinstance(batch.content, pa.RecordBatch):
        batch = replace(batch, content=simplified(batch.content))
        assert isinstance(batch.content, pa.RecordBatch)
        columns = conversations(batch.content, source.format)
        labels = _labels(batch.content, fallback)
        if columns is not None and labels is not None:
            return _by_column(batch, source, columns, labels)
    form = formats.format_of(batch.rows, source.format, batch.origin)
    return _by_row(batch, source, form, np.arange(len(batch)))


def _by_column(batch: Batch, source: SourceConfig, columns: Conversations, labels: pa.StringArray) -> Piece:
    """Standardise the rows that are in order as columns, and the others by row; the batch's order is kept."""
    assert isinstance(batch.content, pa.RecordBatch)
    good, odd = np.flatnonzero(columns.in_order), np.flatnonzero(~columns.in_order)
    texts, offsets = columns.texts.to_pylist(), columns.offsets.tolist()
    keys = [text_key(texts[offsets[row] : offsets[row + 1]]) for row in good.tolist()]
    taken = pa.array(good)
    rows = [pa.array(keys, pa.binary()), labels.take(taken), columns.messages.take(taken)]
    table = pa.RecordBatch.from_arrays(rows, schema=SCHEMA)
    scores = _scores(batch.content, source.score)[good]
    if not len(odd):
        return Piece(table, scores, good, len(batch), {}, {})
    content = plain(batch.content.take(pa.array(odd)))
    others = Batch(content, batch.origin, [batch.numbers[index] for index in odd.tolist()])
    rest = _by_row(others, source, columns.form, odd)
    places = np.concatenate([good, rest.places])
    order = np.argsort(places)
    both = pa.Table.from_batches([table, rest.rows]).take(pa.array(order)).combine_chunks()
    merged = both.to_batches()[0] if len(both) else table
    scores = np.concatenate([scores, rest.scores])[order]
    return Piece(merged, scores, places[order], len(batch), rest.dropped, rest.mended)


def _by_row(batch: Batch, source: SourceConfig, form: RowFormat, places: np.ndarray) -> Piece:
    """Standardise rows one by one.

    Args:
        batch: the rows.
        source: they are from.
        form: of the rows.
        places: shape (rows): their places in the whole batch.
    """
    read_turns = formats.reader(form)
    dropped: dict[str, Counter[str]] = {}
    mended: dict[str, Counter[str]] = {}
    usable, scores, kept = [], [], []
    for index, row in enumerate(batch.rows):
        try:
            turns, reasons = mend(read_turns(row))
        except formats.FormatError as error:
            raise UserError(f"{batch.where(index)}: {error}") from None
        origin = _origin(row) or source.id or str(source.kind)
        counts = mended if turns else dropped
        for reason in reasons:
            counts.setdefault(reason, Counter())[origin] += 1
        if turns:
            messages = [{"role": role, "content": text} for role, text in turns]
            usable.append({"key": text_key(text for _, text in turns), "source": origin, "messages": messages})
            scores.append(_score(row.get(source.score)))
            kept.append(index)
    rows = pa.RecordBatch.from_pylist(usable, schema=SCHEMA)
    return Piece(rows, _as_float32(np.array(scores, np.float64)), places[kept], len(batch), dropped, mended)


def text_key(texts: Iterable[str]) -> bytes:
    """Return the 128-bit BLAKE2b hash of a conversation's normalised text."""
    return blake2b(normalised(texts).encode(), digest_size=KEY_BYTES).digest()


def _origin(row: Row) -> str | None:
    """Return where a row says it is from."""
    for name in LABELS:
        label = row.get(name)
        if isinstance(label, str) and label:
            return encodable(label)
    return None


def _labels(batch: pa.RecordBatch, fallback: str) -> pa.StringArray | None:
    """Return where each row says it is from; None if that is not plain text all through."""
    labels = pa.nulls(len(batch), pa.string())
    for name in LABELS:
        if name not in batch.schema.names:
            continue
        column = batch.column(name)
        if not pa.types.is_string(column.type):
            return None
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return None
        labels = pc.coalesce(labels, pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column))
    return pc.fill_null(labels, fallback)


def _scores(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return the scores that the rows came with, shape (rows), float32."""
    if name in batch.schema.names:
        column = batch.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return _as_float32(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))  # null is NaN
    return np.full(len(batch), np.nan, dtype=np.float32)


def _score(value: Any) -> float:
    """Return a row's score; NaN for what is no number, or one too large."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _as_float32(numbers: np.ndarray) -> np.ndarray:
    """Return scores as float32; NaN for what is too large to be one."""
    with np.errstate(over="ignore", invalid="ignore"):
        small: np.ndarray = numbers.astype(np.float32)
    small[np.isinf(small) & np.isfinite(numbers)] = np.nan
    return small


log = logging.getLogger(__name__)

VERSION = 4
"""Raised when the same source is standardised to other rows."""

LAYOUT = 2
"""Raised when the same rows are kept in other files."""

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Standardised:
    """The usable rows of a source, in its order."""

    fingerprint: str
    """What the rows were made from: content of the source, format, version of the standardising."""

    folder: Path
    """Where it is kept."""

    rows: Dataset
    """Columns `key` (16 bytes), `source`, `messages`; memory-mapped."""

    keys: np.ndarray
    """Shape (rows, 2), uint64: the 128 bits of each key, the higher half first."""

    labels: np.ndarray
    """Shape (rows), int32: where each row is from, as its place in `names`."""

    names: list[str]
    """The sources that rows are from, in the order of their names."""

    scores: np.ndarray | None
    """Shape (rows), float32: the score that each row came with, NaN where it had none; None if no row has one."""

    read: int
    """Rows of the source, usable or not."""

    dropped: Counts
    """Rows left out, by reason, by source."""

    mended: Counts
    """Rows changed, by reason, by source."""


def standardise(source: SourceConfig, key: str, cache: Path) -> Standardised:
    """Return the source's usable rows, from the cache or read now.

    Args:
        source: what to read.
        key: where it stands in the config, for errors.
        cache: root of the cache.

    Raises:
        UserError: the source is missing, broken or of an unknown shape.
    """
    made_from = {"source": fingerprint(source, key), "format": str(source.format), "standardise": VERSION}
    kept_as = {**made_from, "layout": LAYOUT, "score": source.score}
    folder = cached_folder(cache, "sources", kept_as, lambda target: _build(source, key, target))
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    scores = folder / "scores.npy"
    return Standardised(
        fingerprint="{source}/{format}/v{standardise}".format(**made_from),
        folder=folder,
        rows=Dataset.from_file(str(folder / "rows.arrow")),
        keys=np.load(folder / "keys.npy").view(">u8").astype(np.uint64),
        labels=np.load(folder / "labels.npy"),
        names=json.loads((folder / "labels.json").read_text(encoding="utf-8")),
        scores=np.load(scores) if scores.exists() else None,
        **counts,
    )


def _build(source: SourceConfig, key: str, folder: Path) -> None:
    """Write the files of the folder, a batch at a time."""
    dropped: dict[str, Counter[str]] = {}
    mended: dict[str, Counter[str]] = {}
    keys, labels, scores = bytearray(), list[np.ndarray](), list[np.ndarray]()
    names: dict[str, int] = {}
    total = 0
    work = partial(standardised, source=source)
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress(f"{key}: rows standardised") as advance,
    ):
        for piece in in_order(work, read(source, key)):
            rows = piece.rows
            writer.write_batch(rows)
            keys += b"".join(rows.column("key").to_pylist())
            labels.append(_coded(rows.column("source"), names))
            scores.append(piece.scores)
            total += piece.read
            advance(piece.read)
            for counts, more in ((dropped, piece.dropped), (mended, piece.mended)):
                for reason, by_source in more.items():
                    counts.setdefault(reason, Counter()).update(by_source)
    np.save(folder / "keys.npy", np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES))
    ordered = sorted(names)
    places = np.array([ordered.index(name) for name in names], dtype=np.int32)
    np.save(folder / "labels.npy", places[_joined(labels, np.int32)])
    (folder / "labels.json").write_text(json.dumps(ordered), encoding="utf-8")
    score = _joined(scores, np.float32)
    if not np.isnan(score).all():
        np.save(folder / "scores.npy", score)
    (folder / "counts.json").write_text(
        json.dumps({"read": total, "dropped": dropped, "mended": mended}), encoding="utf-8"
    )
    log.info("%s: %s rows standardised", key, f"{total:,}")


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    """Concatenate, also nothing."""
    return np.concatenate([*parts, np.empty(0, dtype=kind)]).astype(kind)


def _coded(labels: pa.StringArray, names: dict[str, int]) -> np.ndarray:
    """Return labels as numbers; a new name gets the next one."""
    encoded = labels.dictionary_encode()
    places = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
    coded: np.ndarray = np.array([*places, -1], dtype=np.int32)[encoded.indices.to_numpy()]
    return coded
