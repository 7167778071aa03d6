"""The numbers of a data card: one value per row of a mix, computed on Arrow columns."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tometune.common.seeding import stream
from tometune.data.conversations import full_messages
from tometune.data.features import characters, sum_turns, turns_of
from tometune.data.mix import Mix
from tometune.data.tokens import Tokens

BATCH = 10_000
MOST_NAMES, LONGEST_NAME = 30, 60  # of columns that were not read
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
    sources, sizes, turns = [], [], []
    for table in mix.dataset.with_format("arrow").iter(BATCH):
        for batch in table.combine_chunks().to_batches():
            sources += [rank[name] for name in batch["source"].to_pylist()]
            sizes.append(characters(batch))
            turns.append(sum_turns(batch, pc.not_equal(turns_of(batch)[1], "system")))
    return Profile(
        name=mix.name,
        names=list(rank),
        sources=np.array(sources),
        # A row id is `base:KEY` or `pool:KEY`, with `-2` after the key of a copy.
        pool=np.array([row_id.startswith("pool:") for row_id in mix.row_ids]),
        keys=np.array([row_id[5:37] for row_id in mix.row_ids], dtype="S32"),
        characters=np.concatenate(sizes),
        turns=np.concatenate(turns),
        tokens=None if tokens is None else tokens.lengths,
        scores=mix.scores,
    )


def unread_columns(mix: Mix) -> list[tuple[str, str, str]]:
    """Return (origin, source, `images 6, label 3`): columns and keys of turns that were not read, and their rows."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for origin, facts in mix.facts.items():
        for name, by_source in facts["unread"].items():
            for source, rows in by_source.items():
                found.setdefault((origin, source), {})[name] = rows
    listed = []
    for (origin, source), names in sorted(found.items(), key=lambda entry: -sum(entry[1].values())):
        largest = sorted(names.items(), key=lambda entry: (-entry[1], entry[0]))
        shown = [f"{' '.join(name[:LONGEST_NAME].split())} {rows:,}" for name, rows in largest[:MOST_NAMES]]
        shown += [f"{len(largest) - MOST_NAMES:,} more"] if len(largest) > MOST_NAMES else []
        listed.append((origin, source, ", ".join(shown)))
    return listed


def repeats(found: Profile) -> dict[str, int]:
    """Count by source the rows whose text an earlier row of the mix has."""
    _, first = np.unique(found.keys, return_index=True)
    counts = np.bincount(np.delete(found.sources, first), minlength=len(found.names)).tolist()
    return {name: count for name, count in zip(found.names, counts, strict=True) if count}


def samples(mix: Mix, count: int = SAMPLES) -> list[dict[str, Any]]:
    """Return a few random rows, drawn with the mix's seed: `number, row_id, source, messages`.

    What a turn holds beyond its text, such as tool calls, is appended to the text as JSON.
    """
    drawn = stream(mix.seed, "card").permutation(len(mix.row_ids))[:count]
    shown = []
    for number in sorted(drawn.tolist()):
        row = mix.dataset[number]
        messages = []
        for turn in full_messages(row["messages"], row["extras"])[0]:
            more = {name: value for name, value in turn.items() if name not in ("role", "content")}
            text = "\n".join([turn["content"], json.dumps(more, ensure_ascii=False)] if more else [turn["content"]])
            messages.append({"role": turn["role"], "content": text})
        shown.append({"number": number, "row_id": mix.row_ids[number], "source": row["source"], "messages": messages})
    return shown


def described(values: np.ndarray) -> dict[str, float]:
    """Return mean, median, 5th and 95th percentile, and sum; zeros if there are no values."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p5", "p95", "sum"), 0.0)
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(values.mean()), "median": median, "p5": p5, "p95": p95, "sum": float(values.sum())}
