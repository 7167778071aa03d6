"""The draw: the eligible rows of a pool in one order, of which a mix takes a beginning, a larger one a longer one.

Weights: each weighted source, and all others together, is a queue of its rows. The k-th row of a queue of weight w is
put at (k − ½) / w, and the queues are merged by these numbers, ties in the draw's order. Every beginning of the merged
order has each share to within a row or so. What weights do not name is drawn as its rows are in the pool.
"""

from dataclasses import dataclass

import numpy as np

from tometune.common.errors import UserError, did_you_mean
from tometune.common.seeding import stream
from tometune.config.data import PoolConfig, PoolOrder
from tometune.data.standardise import Standardised

OTHERS = "all other sources"


@dataclass(frozen=True)
class Short:
    """Why there are fewer rows than asked for."""

    rows: int
    """Most that can be added."""

    reason: str
    """What runs out; empty where all eligible rows are too few."""


def check_names(config: PoolConfig, names: list[str]) -> None:
    """Check that weights and caps name sources that are there.

    Raises:
        UserError: one is not.
    """
    for kind, named in {"weights": list(config.weights), "caps": list(config.caps)}.items():
        for name in named:
            if name not in names:
                listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
                near = did_you_mean(name, names)
                raise UserError(f"data.pool.{kind}.{name}: the pool has no such source{near} (sources: {listed})")


def in_draw_order(eligible: np.ndarray, scores: np.ndarray | None, config: PoolConfig, seed: int) -> np.ndarray:
    """Return the eligible rows in the order in which they are drawn, weights and caps aside.

    Args:
        eligible: row numbers in the order of their keys.
        scores: shape (rows of the source), where the order is `best`; equal ones stay in the order of their keys.
        config: of the pool.
        seed: of the draw.
    """
    if config.order is PoolOrder.best:
        assert scores is not None
        return eligible[np.argsort(-scores[eligible], kind="stable")]
    return eligible[stream(seed, "data").permutation(len(eligible))]


def take(ordered: np.ndarray, added: int, source: Standardised, config: PoolConfig) -> np.ndarray | Short:
    """Return the first rows of an order that weights and caps allow, or why there are too few.

    Args:
        ordered: row numbers, shape (eligible).
        added: how many are wanted.
        source: the rows.
        config: of the pool.
    """
    ordered = _capped(ordered, source, config)
    if not config.weights:
        limit = "since data.pool.caps leave out the others, and" if config.caps else ""
        return ordered[:added] if len(ordered) >= added else Short(len(ordered), limit)
    labels = source.labels[ordered]
    places = np.full(len(ordered), np.inf)
    ends = {}
    for name, weight, member in _queues(labels, source, config):
        count = int(member.sum())
        if weight > 0:
            places[member] = (np.arange(count) + 0.5) / weight
            ends[name] = (count + 0.5) / weight  # where its next row would be, if it had one
    merged = np.argsort(places, kind="stable")  # ties: in the draw's order
    first = min(ends, key=ends.__getitem__)
    allowed = int((places < ends[first]).sum())
    if added > allowed:
        return Short(allowed, f"in these shares, since {first} has {_count(first, labels, source, config)}, and")
    return ordered[merged[:added]]


def _capped(ordered: np.ndarray, source: Standardised, config: PoolConfig) -> np.ndarray:
    """Leave out the rows of a source that come after its cap."""
    keep = np.ones(len(ordered), dtype=bool)
    labels = source.labels[ordered]
    for name, most in config.caps.items():
        keep[np.flatnonzero(labels == source.names.index(name))[most:]] = False
    return ordered[keep]


def _queues(labels: np.ndarray, source: Standardised, config: PoolConfig) -> list[tuple[str, float, np.ndarray]]:
    """Return name, weight and members (shape of labels, bool) of each queue; the last is of all that have no weight."""
    queues = []
    others = np.ones(len(labels), dtype=bool)
    for name, weight in sorted(config.weights.items()):
        member = labels == source.names.index(name)
        others &= ~member
        queues.append((name, weight, member))
    rest = 1 - sum(config.weights.values())
    return [*queues, (OTHERS, rest if rest > 1e-9 else 0.0, others)]


def _count(name: str, labels: np.ndarray, source: Standardised, config: PoolConfig) -> str:
    """Return the rows of a queue, in words."""
    members = next(member for queue, _, member in _queues(labels, source, config) if queue == name)
    return f"{int(members.sum()):,} rows"
