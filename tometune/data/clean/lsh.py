"""Which rows of a signature matrix are like one before them: LSH over sorted hashes of bands, with a few bytes a row.

A pair is compared where a whole band of their signatures is the same. In place of a table of buckets in Python, which
takes about 3 KB a row, the hashes of each band are sorted once: rows that share one get its number, and the rows that
are kept are chained by it. Costs 128 bytes a row beside the signatures, which may lie on the disk.
"""

from collections.abc import Callable

import numpy as np

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
