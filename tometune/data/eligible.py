"""What may be drawn: the rows of a pool that no mask leaves out, one for each text that is not in the base."""

from dataclasses import dataclass

import numpy as np

from tometune.data.standardise import Standardised


@dataclass(frozen=True)
class Eligible:
    """The rows of a pool, one for each text."""

    rows: np.ndarray
    """Row numbers in the order of their keys, which is that of no file."""

    in_base: np.ndarray
    """Numbers of rows whose text is in the base."""

    repeats: np.ndarray
    """Numbers of rows whose text is in another row that was before them; some are in the base too."""


def eligible(pool: Standardised, numbers: np.ndarray, base: Standardised, scores: np.ndarray | None) -> Eligible:
    """Return one row of the pool for each text that is not in the base.

    Of rows that share a text it is the one of the source that comes first by name, then of the best score, then the
    first of the given order.

    Args:
        pool: its rows.
        numbers: of those that no mask leaves out, in the order of `in_key_order`.
        base: its rows; all of them count.
        scores: shape (rows of the pool), where rows are ranked.
    """
    keys = np.concatenate([base.keys, pool.keys[numbers]])
    sorting = [keys[:, 1], keys[:, 0]]  # np.lexsort sorts by the last one first
    if scores is not None:
        sorting = [*(_after_base(base, values) for values in (-scores[numbers], pool.labels[numbers])), *sorting]
    order = np.lexsort(sorting)  # stable, so the base's rows come first, then the pool's as they are given
    ordered = keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(begins)
    of_base = order < len(base.keys)
    in_base = np.logical_or.reduceat(of_base, starts)[np.cumsum(begins) - 1] if len(order) else of_base
    previous_of_base = np.concatenate([[False], of_base[:-1]])
    first = ~of_base & (begins | previous_of_base)  # of the pool's rows of a text
    taken = numbers[order[first & ~in_base] - len(base.keys)]
    out = (in_base & ~of_base, ~of_base & ~first)
    return Eligible(taken, *(numbers[order[some] - len(base.keys)] for some in out))


def _after_base(base: Standardised, values: np.ndarray) -> np.ndarray:
    """Put something below every value in front, so that the base's rows stay first."""
    lowest = np.full(len(base.keys), -np.inf)
    return np.concatenate([lowest, np.nan_to_num(values.astype(np.float64), neginf=np.finfo(np.float64).min)])
