"""The numbers of a data card: one value per row of a mix, computed on Arrow columns."""

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
SAMPLES = 10  # rows that a card shows as chats


@dataclass(frozen=True)
class Profile:
    """Values of the rows of a mix, in its order; arrays of the same length."""

    name: str  # of the mix
    names: list[str]  # sources, largest first
    sources: np.ndarray  # index of each row's source in `names`
    pool: np.ndarray  # bool: whether the row is from the pool
    keys: np.ndarray  # S32: hash of the normalised text; rows that share one have the same text
    characters: np.ndarray  # of all turns
    turns: np.ndarray  # without system turns
    tokens: np.ndarray | None  # after truncation, 0 for rows that training skips; None if the mix is not tokenised
    scores: np.ndarray | None  # NaN for rows without one; None if no row has one

    def __len__(self) -> int:
        return len(self.sources)

    def by_source(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each source with the mask of its rows."""
        for number, name in enumerate(self.names):
            yield name, self.sources == number


def profile(mix: Mix, tokens: Tokens | None = None) -> Profile:
    """Return the values of a mix, with those of its tokens if it is tokenised."""
    rank = {name: number for number, name in enumerate(mix.sources)}
    sources, characters, turns = [], [], []
    for table in mix.dataset.with_format("arrow").iter(BATCH):
        messages = table.column("messages").combine_chunks()
        counts = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
        starts = np.cumsum(counts) - counts
        flat = messages.flatten()
        sizes = pc.utf8_length(flat.field("content")).to_numpy(zero_copy_only=False)
        spoken = pc.not_equal(flat.field("role"), "system").to_numpy(zero_copy_only=False)
        sources += [rank[name] for name in table.column("source").to_pylist()]
        characters.append(np.add.reduceat(sizes.astype(np.int64), starts))  # every conversation has a turn
        turns.append(np.add.reduceat(spoken.astype(np.int64), starts))
    ids = pa.array(mix.row_ids, type=pa.string())  # `base:KEY` or `pool:KEY`, with `-2` after the key of a copy
    return Profile(
        name=mix.name,
        names=list(rank),
        sources=np.array(sources),
        pool=pc.starts_with(ids, "pool:").to_numpy(zero_copy_only=False).astype(bool),
        keys=np.array(pc.utf8_slice_codeunits(ids, 5, 37).to_pylist(), dtype="S32"),
        characters=np.concatenate(characters),
        turns=np.concatenate(turns),
        tokens=None if tokens is None else tokens.lengths,
        scores=mix.scores,
    )


def repeats(found: Profile) -> dict[str, int]:
    """Count by source the rows whose text an earlier row of the mix has."""
    _, first = np.unique(found.keys, return_index=True)
    repeated = np.ones(len(found), dtype=bool)
    repeated[first] = False
    counts = np.bincount(found.sources[repeated], minlength=len(found.names))
    return {name: int(count) for name, count in zip(found.names, counts, strict=True) if count}


def samples(mix: Mix, count: int = SAMPLES) -> list[dict[str, Any]]:
    """Return a few random rows, drawn with the mix's seed: `number, row_id, source, messages`."""
    drawn = stream(mix.seed, "card").permutation(len(mix.row_ids))[:count]
    return [
        {"number": number, "row_id": mix.row_ids[number], **mix.dataset[number]} for number in sorted(drawn.tolist())
    ]


def described(values: np.ndarray) -> dict[str, float]:
    """Return mean, median, 5th and 95th percentile, and sum; zeros if there are no values."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p5", "p95", "sum"), 0.0)
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(values.mean()), "median": median, "p5": p5, "p95": p95, "sum": float(values.sum())}
