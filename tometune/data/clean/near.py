"""Near-duplicates: MinHash over runs of words (rensa), base rows first, then pool rows in the order of their keys.

A row is left out if its estimated Jaccard similarity to a row that is kept reaches the threshold. The order is that of
the keys, so the same rows are left out whatever files they came in.
"""

from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tometune.caching import cached_folder
from tometune.data.clean.features import slices, turns_of
from tometune.data.conversations import normalised
from tometune.data.parallel import in_order
from tometune.progress import progress

if TYPE_CHECKING:  # other processes import this module, and need no `datasets`
    from tometune.data.standardise import Standardised

VERSION = 1
"""Raised when the same rows give other near-duplicates."""

PERMUTATIONS = 128
"""Of a signature: the estimate's standard deviation is 0.035 at a similarity of 0.8."""

BANDS = 16
"""Of 8 permutations each: a pair of similarity 0.8 is compared with probability 0.95, one of 0.9 with 0.9999."""

WORDS = 3
"""Of a run."""

SEED = 42
STEP = 20_000
"""Rows that a process takes at once."""

TOLD = 1_000
"""Rows after which the progress is told."""

Rows = tuple["Standardised", np.ndarray]
"""A source and numbers of its rows, in the order of their keys."""


def near_duplicates(base: Rows, pool: Rows, threshold: float, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the given base and pool rows are near-duplicates of one before them, shapes (rows), bool.

    Args:
        base: come first; a base row is compared with base rows alone.
        pool: with what is eligible, and no two rows of one text.
        threshold: of the similarity.
        cache: root of the cache.
    """
    key: dict[str, Any] = {"version": VERSION, "threshold": threshold}
    for name, (source, numbers) in (("base", base), ("pool", pool)):
        key[name] = {"source": source.fingerprint, "rows": sha256(source.keys[numbers].tobytes()).hexdigest()[:20]}

    def build(folder: Path) -> None:
        np.save(folder / "near.npy", _found([base, pool], threshold))

    found = np.load(cached_folder(cache, "near", key, build) / "near.npy")
    return found[: len(base[1])], found[len(base[1]) :]


def _found(sources: list[Rows], threshold: float) -> np.ndarray:
    """Compare each row with the kept ones that share a band of its signature."""
    from rensa import RMinHashLSH

    index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    kept: list[Any] = []
    near = []
    with progress("rows compared for near-duplicates", sum(len(numbers) for _, numbers in sources)) as advance:
        for signature in (signature for rows in sources for signature in _signatures(*rows)):
            duplicate = any(signature.jaccard(kept[other]) >= threshold for other in index.query(signature))
            near.append(duplicate)
            if not duplicate:
                index.insert(len(kept), signature)
                kept.append(signature)
            if len(near) % TOLD == 0:
                advance(TOLD)
    return np.array(near, dtype=bool)


def _signatures(source: "Standardised", numbers: np.ndarray) -> Iterator[Any]:
    """Yield the signature of each row in the given order; they are made in the order in which the rows lie."""
    made = np.sort(numbers)
    edges = np.searchsorted(made, np.arange(0, len(source.rows) + STEP, STEP))
    parts = [made[start:end] for start, end in pairwise(edges) if end > start]
    signatures: list[Any] = []
    for part in in_order(partial(_of_rows, source.folder / "rows.arrow"), parts):
        signatures += part
    for place in np.searchsorted(made, numbers).tolist():
        yield signatures[place]


def _of_rows(path: Path, numbers: np.ndarray) -> list[Any]:
    """Return the signatures of some rows, in any process."""
    from rensa import RMinHash

    runs: list[list[str]] = []
    first = int(numbers[0])
    wanted = set((numbers - first).tolist())
    place = 0
    for batch in slices(path, first, int(numbers[-1]) + 1):
        rows, _, texts = turns_of(batch)
        edges = np.searchsorted(rows, np.arange(len(batch) + 1)).tolist()
        said = texts.to_pylist()
        for start, end in pairwise(edges):
            if place in wanted:
                runs.append(runs_of(normalised(said[start:end])))
            place += 1
    signatures: list[Any] = RMinHash.from_token_sets(runs, PERMUTATIONS, SEED)
    return signatures


def runs_of(text: str) -> list[str]:
    """Return the runs of `WORDS` words of a normalised text; of a shorter one, its words."""
    words = text.split(" ")
    return [" ".join(run) for run in zip(*(words[shift:] for shift in range(WORDS)), strict=False)] or words
