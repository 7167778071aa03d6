"""The one order of a source's rows, however they are spread over files: by key, then by source and what was said."""

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError, did_you_mean
from tometune.common.seeding import stream
from tometune.config.data import DataConfig, PoolConfig, PoolOrder, SourceConfig, SourceKind
from tometune.data.filters import NEAR, Filtered
from tometune.data.standardise import Standardised

VERSION = 1
"""Raised when the same rows come in another order."""


def in_key_order(source: Standardised, cache: Path) -> np.ndarray:
    """Return the numbers of all rows by key; of equal keys by the name of their source, then by a hash of the messages.

    Rows that are still equal are the same text of the same source, letter by letter. Only rows that share a key and a
    source are hashed; what comes out is cached.

    Args:
        source: standardised rows.
        cache: root of the cache.
    """

    def build(folder: Path) -> None:
        np.save(folder / "order.npy", _ordered(source))

    key = {"source": source.fingerprint, "version": VERSION}
    order: np.ndarray = np.load(cached_folder(cache, "order", key, build) / "order.npy")
    return order


def _ordered(source: Standardised) -> np.ndarray:
    """Sort the rows, then the runs of equal ones among themselves."""
    order = np.lexsort((source.labels, source.keys[:, 1], source.keys[:, 0]))
    keys, labels = source.keys[order], source.labels[order]
    same = np.concatenate([(keys[1:] == keys[:-1]).all(axis=1) & (labels[1:] == labels[:-1]), [False]])
    member = same | np.concatenate([[False], same[:-1]])
    places = np.flatnonzero(member)
    if not len(places):
        return order
    run = np.cumsum(~np.concatenate([[False], same[:-1]]))[places]
    rows = order[places]
    hashes = np.empty(len(rows), dtype="S32")
    lying = np.argsort(rows)  # the texts are read as they lie
    for place in lying.tolist():
        said = json.dumps(source.rows[int(rows[place])]["messages"])
        hashes[place] = blake2b(said.encode(), digest_size=16).hexdigest().encode()
    order[places] = rows[np.lexsort((hashes, run))]
    return order


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


Counts = dict[str, dict[str, int]]


def check_base(base: Standardised, filtered: Filtered, shared: int, wanted: int, config: DataConfig) -> None:
    """Check that the base has the rows it should have; `shared` of them are in the evaluation, and dropped for that.

    Raises:
        UserError: it has fewer, or none.
    """
    not_empty(base, config.base, "data.base")
    if not len(base.rows):
        raise UserError(
            f"data.base: none of its {_rows(base.read)} is usable ({_total(base.dropped):,} dropped); "
            f"{_why(base.dropped)}; a row needs a turn of the user and an answer of the assistant"
        )
    found = int(filtered.keep.sum())
    why = "; ".join([_why(base.dropped), *([_why(filtered.counts, "filtered")] if filtered.counts else [])])
    if shared:
        why += f"; data.contamination=drop: {shared:,}"
    if not found:
        raise UserError(f"data.base: no row is left ({why}); loosen data.filters, or set data.filters.base=false")
    if found < wanted:
        alone = config.pool is None and config.base.rows == config.rows
        fix = f"data.rows={found}" if alone else f"data.base.rows={found}"
        raise UserError(
            f"data.base.rows={wanted}: the base has {found:,} usable rows of {base.read:,} ({why}); set {fix}"
        )


def check_pool(config: DataConfig, added: int) -> None:
    """Check that there is a pool to draw from, and one number of rows.

    Raises:
        UserError: there is none, or there are two.
    """
    if config.pool is None:
        raise UserError(
            f"data.rows={config.rows}: the base gives {config.rows - added} and there is no pool for the other {added}"
            f"; set data.pool, or data.rows={config.rows - added}"
        )
    if config.pool.rows is not None:
        raise UserError(
            f"data.pool.rows={config.pool.rows}: is not read, data.rows={config.rows} says how many rows are drawn; "
            "set data.pool.rows=null"
        )


def not_empty(source: Standardised, config: SourceConfig, key: str) -> None:
    """Check that there was a row at all to read.

    Raises:
        UserError: there was none.
    """
    if source.read:
        return
    place = f"{key}.path={config.path}" if config.kind is SourceKind.files else f"{key}.id={config.id}"
    raise UserError(f"{place}: is empty, there is no row in it; name one that holds conversations")


def too_few(pool: Standardised, facts: dict[str, Any], short: Short, added: int, config: DataConfig) -> UserError:
    """Return the error for a pool that has too few rows.

    Args:
        pool: its rows.
        facts: what was counted on the way to the eligible ones.
        short: what runs out.
        added: rows that are wanted of it.
        config: of the mix.
    """
    excluded = facts["excluded"]
    steps = {"in the base": excluded["in_base"], "repeats": excluded["repeats"], "dropped": _total(pool.dropped)}
    if facts["filtered"]:
        steps["filtered"] = _total(facts["filtered"])
    if facts.get("contaminated_rows"):
        steps["data.contamination=drop"] = facts["contaminated_rows"]
    if NEAR in facts:
        steps["near-duplicates"] = sum(facts[NEAR].values())
    went = ", ".join(f"{what}: {count:,}" for what, count in steps.items())
    fewer = config.rows - added + short.rows
    limit = f"{short.rows:,} can be added {short.reason} " if short.reason else ""
    return UserError(
        f"data.pool: {facts['eligible']:,} usable rows of {pool.read:,} ({went}), but {limit}data.rows={config.rows} "
        f"needs {added:,} of them; add rows to the pool, or set data.rows={fewer}"
    )


def _rows(count: int) -> str:
    """Return a number of rows in words."""
    return f"{count:,} row{'s' if count != 1 else ''}"


def _why(counts: Counts, what: str = "dropped") -> str:
    """Say what was dropped and why."""
    reasons = {reason: sum(by_source.values()) for reason, by_source in counts.items()}
    return f"{what}: " + (", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none")


def _total(counts: Counts) -> int:
    """Return the sum over reasons and sources."""
    return sum(sum(by_source.values()) for by_source in counts.values())
