"""A mix in numbers, a value a row: what the data card draws. Columns only; no row becomes a Python object."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.common.seeding import stream
from tometune.data.mix import Mix
from tometune.data.tokens import Tokens

BATCH = 10_000

SAMPLES = 10
"""Rows that a card shows as chats."""


@dataclass(frozen=True)
class Profile:
    """Values of the rows of a mix, in its order; arrays of the same length."""

    name: str
    """Of the mix."""

    names: list[str]
    """Sources, the one with most rows first."""

    sources: np.ndarray
    """Number of each row's source in `names`."""

    pool: np.ndarray
    """Whether a row is from the pool; bool."""

    keys: np.ndarray
    """Hash of each row's normalised text, 32 hex digits, dtype S32: rows that share one have the same text."""

    characters: np.ndarray
    """Characters of all turns."""

    turns: np.ndarray
    """Turns of any role but the system's."""

    tokens: np.ndarray | None
    """Tokens after cutting; 0 for a row that is left out since nothing in it is trained on. None: not tokenised."""

    scores: np.ndarray | None
    """Quality scores, nan where a row has none; None where no row has one."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.sources)

    def by_source(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each source with the mask of its rows."""
        for number, name in enumerate(self.names):
            yield name, self.sources == number


def profile(mix: Mix, tokens: Tokens | None = None) -> Profile:
    """Return the values of a mix.

    Args:
        mix: the conversations.
        tokens: the same, tokenised.
    """
    columns = [_columns(table) for table in mix.dataset.with_format("arrow").iter(BATCH)]
    labels = pa.chunked_array([column["source"] for column in columns], type=pa.string()).dictionary_encode()
    labels = labels.unify_dictionaries().combine_chunks()
    labels = labels.chunk(0) if isinstance(labels, pa.ChunkedArray) else labels
    codes, found = labels.indices.to_numpy(), labels.dictionary.to_pylist()
    order = np.argsort(-np.bincount(codes, minlength=len(found)), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    origins, keys = _identities(mix.row_ids)
    return Profile(
        mix.name,
        [found[number] for number in order],
        rank[codes],
        origins,
        keys,
        np.concatenate([column["characters"] for column in columns]),
        np.concatenate([column["turns"] for column in columns]),
        None if tokens is None else tokens.lengths,
        mix.scores,
    )


def _columns(table: pa.Table) -> dict[str, Any]:
    """Return the values of some rows."""
    messages = table.column("messages").combine_chunks()
    turns = messages.flatten()
    counts = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
    starts = np.cumsum(counts) - counts
    characters = pc.fill_null(pc.utf8_length(pc.struct_field(turns, "content")), 0).to_numpy(zero_copy_only=False)
    spoken = pc.not_equal(pc.struct_field(turns, "role"), "system").to_numpy(zero_copy_only=False)
    return {
        "source": pc.fill_null(table.column("source").combine_chunks().cast(pa.string()), "none"),
        "characters": np.add.reduceat(characters.astype(np.int64), starts),  # no conversation is without a turn
        "turns": np.add.reduceat(spoken.astype(np.int64), starts),
    }


def _identities(row_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether rows are from the pool, and their keys; an id is `base:KEY` or `pool:KEY`, and `-2` for a copy."""
    ids = pa.array(row_ids, type=pa.string())
    pool = pc.starts_with(ids, "pool:").to_numpy(zero_copy_only=False)
    keys = np.array(pc.utf8_slice_codeunits(ids, 5, 37).to_pylist(), dtype="S32")
    return pool.astype(bool), keys


def repeats(found: Profile) -> dict[str, int]:
    """Return the rows whose text an earlier row of the mix has, by source."""
    _, first = np.unique(found.keys, return_index=True)
    again = np.ones(len(found), dtype=bool)
    again[first] = False
    counts = np.bincount(found.sources[again], minlength=len(found.names))
    return {name: int(count) for name, count in zip(found.names, counts, strict=True) if count}


def samples(mix: Mix, count: int = SAMPLES) -> list[dict[str, Any]]:
    """Return a few rows, drawn with the mix's seed: `number, row_id, source, messages`."""
    drawn = stream(mix.seed, "card").permutation(len(mix.row_ids))[:count]
    return [
        {"number": number, "row_id": mix.row_ids[number], **mix.dataset[number]} for number in sorted(drawn.tolist())
    ]


def described(values: np.ndarray) -> dict[str, float]:
    """Return mean, median and the 5th and 95th percentile of some values; of none, zeros."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p5", "p95", "sum"), 0.0)
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(values.mean()), "median": median, "p5": p5, "p95": p95, "sum": float(values.sum())}
