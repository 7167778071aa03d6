"""Near-duplicates: MinHash over runs of words (rensa), base rows first, then the pool's rows in a given order.

A row is left out if its estimated Jaccard similarity to a row that is kept reaches the threshold. The order is that of
keys, or of scores and then keys, so the same rows are left out whatever files they came in. Signatures, 512 bytes
a row, are a file that is mapped, and goes when the rows are compared.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.common.progress import progress
from tometune.data.conversations import normalised
from tometune.data.features import slices, turns_of
from tometune.data.parallel import in_order

if TYPE_CHECKING:
    from tometune.data.standardise import Standardised

VERSION = 2
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

PIECE = 1_000
"""Rows whose signatures are Python numbers at once."""

Rows = tuple["Standardised", np.ndarray]
"""A source and numbers of its rows, in the order in which they are compared."""


def near_duplicates(fixed: Rows, rows: Rows, threshold: float, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are near-duplicates, and which of them of a fixed row; both of shape (rows), bool.

    A row is one if it is like a fixed row, or like a row before it that is none.

    Args:
        fixed: rows that stay, whatever they are like.
        rows: what may go; no two rows of one text.
        threshold: of the similarity.
        cache: root of the cache.
    """
    key: dict[str, Any] = {"version": VERSION, "threshold": threshold}
    for name, (source, numbers) in (("fixed", fixed), ("rows", rows)):
        key[name] = {"source": source.fingerprint, "rows": sha256(source.keys[numbers].tobytes()).hexdigest()[:20]}

    def build(folder: Path) -> None:
        path = folder / "signatures.npy"
        signatures = _signatures([fixed, rows], path)
        with progress("rows compared for near-duplicates", len(signatures)) as advance:
            found = like_an_earlier(signatures, len(fixed[1]), threshold, BANDS, advance)
        np.save(folder / "near.npy", found[len(fixed[1]) :])
        del signatures
        path.unlink()

    found = np.load(cached_folder(cache, "near", key, build) / "near.npy")
    return found != NOBODY, (found != NOBODY) & (found < len(fixed[1]))


def _signatures(sources: list[Rows], path: Path) -> np.ndarray:
    """Return the signature of each row in the given order; they are made in the order in which the rows lie."""
    total = sum(len(numbers) for _, numbers in sources)
    if not total:
        path.touch()  # an empty file cannot be mapped
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    signatures = np.lib.format.open_memmap(path, "w+", np.uint32, (total, PERMUTATIONS))
    first = 0
    with progress("rows signed for near-duplicates", total) as advance:
        for source, numbers in sources:
            order = np.argsort(numbers, kind="stable")
            made = numbers[order]
            edges = np.searchsorted(made, np.arange(0, len(source.rows) + STEP, STEP))
            parts = [(start, end) for start, end in pairwise(edges.tolist()) if end > start]
            work = partial(_of_rows, source.folder / "rows.arrow")
            done = in_order(work, (made[start:end] for start, end in parts))
            for (start, end), part in zip(parts, done, strict=True):
                signatures[first + order[start:end]] = part
                advance(end - start)
            first += len(numbers)
    return signatures


def _of_rows(path: Path, numbers: np.ndarray) -> np.ndarray:
    """Return the signatures of some rows, shape (rows, PERMUTATIONS), uint32; in any process."""
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
    signatures = np.empty((len(runs), PERMUTATIONS), dtype=np.uint32)
    for start in range(0, len(runs), PIECE):  # as Python numbers they take 4 KB a row
        piece = RMinHash.digests_from_token_sets(runs[start : start + PIECE], PERMUTATIONS, SEED)
        signatures[start : start + len(piece)] = piece
    return signatures


def runs_of(text: str) -> list[str]:
    """Return the runs of `WORDS` words of a normalised text; of a shorter one, its words."""
    words = text.split(" ")
    return [" ".join(run) for run in zip(*(words[shift:] for shift in range(WORDS)), strict=False)] or words


NOBODY = -1


def like_an_earlier(
    signatures: np.ndarray, fixed: int, threshold: float, bands: int, advance: Callable[[int], None] = lambda _: None
) -> np.ndarray:
    """Return for each row the first kept row before it that it is similar to, shape (rows), int32; none: NOBODY.

    Args:
        signatures: shape (rows, permutations), uint32; may be memory-mapped.
        fixed: rows at the beginning that are kept whatever they are like.
        threshold: least share of a signature that two similar rows have in common.
        bands: how many; they divide the permutations.
        advance: told how many rows are done.
    """
    groups = _groups(signatures, bands)
    last = np.full(int(groups.max(initial=NOBODY)) + 1, NOBODY, dtype=np.int32)  # of each group, the last kept row
    before = np.full(groups.shape, NOBODY, dtype=np.int32)  # of each row and band, the kept row before it in its group
    like = np.full(len(signatures), NOBODY, dtype=np.int32)
    shared = np.flatnonzero((groups != NOBODY).any(axis=1))
    least = threshold * signatures.shape[1] - 1e-9
    done = 0
    for row in shared.tolist():
        mine = groups[row]
        within = mine != NOBODY
        heads = last[mine[within]]
        if row >= fixed:
            like[row] = _first_like(signatures, row, _chained(heads, np.flatnonzero(within), before), least)
        if like[row] == NOBODY:
            before[row, within] = heads
            last[mine[within]] = row
        advance(row + 1 - done)
        done = row + 1
    advance(len(signatures) - done)
    return like


def _groups(signatures: np.ndarray, bands: int) -> np.ndarray:
    """Return for each row and band the number of the rows that share it, shape (rows, bands), int32; alone: NOBODY.

    Bands are told apart by a 64-bit hash; two that share one by chance are compared in vain, no more.
    """
    rows, permutations = signatures.shape
    width = permutations // bands
    odd = np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    groups = np.full((rows, bands), NOBODY, dtype=np.int32)
    found = 0
    for band in range(bands):
        hashes = np.zeros(rows, dtype=np.uint64)
        for place in range(width):
            hashes += signatures[:, band * width + place].astype(np.uint64) * odd[place]
            hashes ^= hashes >> np.uint64(29)
        order = np.argsort(hashes, kind="stable")
        same = hashes[order[1:]] == hashes[order[:-1]]
        member = np.concatenate([same, [False]]) | np.concatenate([[False], same]) if rows else np.zeros(0, bool)
        begins = member & ~np.concatenate([[False], same]) if rows else member
        numbers = np.cumsum(begins) - 1 + found
        groups[order[member], band] = numbers[member]
        found += int(begins.sum())
    return groups


def _chained(heads: np.ndarray, bands: np.ndarray, before: np.ndarray) -> list[int]:
    """Return the kept rows that share a band, each once."""
    found: set[int] = set()
    for row, band in zip(heads.tolist(), bands.tolist(), strict=True):
        while row != NOBODY:
            found.add(row)
            row = int(before[row, band])
    return sorted(found)


def _first_like(signatures: np.ndarray, row: int, others: list[int], least: float) -> int:
    """Return the first of the others whose signature has as much in common with that of a row, or NOBODY."""
    if not others:
        return NOBODY
    alike = (signatures[others] == signatures[row]).sum(axis=1) >= least
    return others[int(alike.argmax())] if alike.any() else NOBODY
