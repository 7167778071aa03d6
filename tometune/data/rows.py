"""A batch of a source as standardised rows: the work that is done on every core."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.common.errors import UserError
from tometune.config.data import RowFormat, SourceConfig
from tometune.data import formats
from tometune.data.arrow import Row, plain, simplified
from tometune.data.columns import MESSAGES, Conversations, conversations
from tometune.data.conversations import encodable, mend, normalised
from tometune.data.readers import Batch

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
