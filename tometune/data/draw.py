"""The draw: the rows of a pool in one order, from which every mix takes a prefix, and a larger mix a longer one.

Weights: each weighted source, and all other sources together, form a queue. The k-th row of a queue with weight w gets
the position (k − ½) / w, and the queues are merged by position, ties in draw order. Every prefix of the merged order
then has each share to within about one row.
"""

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
from tometune.data.standardise import Counts, Standardised

VERSION = 1  # raised when the same rows get another order
OTHERS = "all other sources"


def in_key_order(source: Standardised, cache: Path) -> np.ndarray:
    """Return all row numbers sorted by key, then source name, then a hash of the messages, however files hold them."""
    key = {"source": source.fingerprint, "version": VERSION}
    folder = cached_folder(cache, "order", key, lambda folder: np.save(folder / "order.npy", _key_order(source)))
    order: np.ndarray = np.load(folder / "order.npy")
    return order


def _key_order(source: Standardised) -> np.ndarray:
    order = np.lexsort((source.labels, source.keys[:, 1], source.keys[:, 0]))
    keys, labels = source.keys[order], source.labels[order]
    same = np.concatenate([(keys[1:] == keys[:-1]).all(axis=1) & (labels[1:] == labels[:-1]), [False]])
    after_same = np.concatenate([[False], same[:-1]])
    places = np.flatnonzero(same | after_same)
    if not len(places):
        return order
    # Only rows that share key and source need the hash of their messages; they are read in the order of the file.
    run = np.cumsum(~after_same)[places]
    rows = order[places]
    hashes = np.empty(len(rows), dtype="S32")
    for place in np.argsort(rows).tolist():
        messages = json.dumps(source.rows[int(rows[place])]["messages"])
        hashes[place] = blake2b(messages.encode(), digest_size=16).hexdigest().encode()
    order[places] = rows[np.lexsort((hashes, run))]
    return order


@dataclass(frozen=True)
class Eligible:
    """Row numbers of a pool, divided by whether they may be drawn."""

    rows: np.ndarray  # one for each text that is not in the base, in key order
    in_base: np.ndarray  # their text is in the base
    repeats: np.ndarray  # their text is in an earlier row of the pool; some are in the base too


def eligible(pool: Standardised, numbers: np.ndarray, base: Standardised, scores: np.ndarray | None) -> Eligible:
    """Return one row of the pool for each text that is not in the base.

    Of rows with the same text, the first by source name wins, then the one with the best score, then the first in the
    given order. `numbers` are the rows that passed every filter, in key order; `scores` those of the whole pool.
    """
    keys = np.concatenate([base.keys, pool.keys[numbers]])
    sorting = [keys[:, 1], keys[:, 0]]  # np.lexsort sorts by the last one first
    if scores is not None:
        lowest = np.full(len(base.keys), -np.inf)  # keeps the base's rows first
        ranks = [-scores[numbers], pool.labels[numbers]]
        finite = [np.nan_to_num(values.astype(np.float64), neginf=np.finfo(np.float64).min) for values in ranks]
        sorting = [*(np.concatenate([lowest, values]) for values in finite), *sorting]
    order = np.lexsort(sorting)  # stable: the base's rows first, then the pool's in the given order
    ordered = keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(begins)
    of_base = order < len(base.keys)
    in_base = np.logical_or.reduceat(of_base, starts)[np.cumsum(begins) - 1] if len(order) else of_base
    first = ~of_base & (begins | np.concatenate([[False], of_base[:-1]]))  # of the pool's rows with this text
    masks = (first & ~in_base, in_base & ~of_base, ~of_base & ~first)
    return Eligible(*(numbers[order[mask] - len(base.keys)] for mask in masks))


def check_names(config: PoolConfig, names: list[str]) -> None:
    """Raise a `UserError` for a weight or cap of a source that does not exist."""
    for kind, named in {"weights": list(config.weights), "caps": list(config.caps)}.items():
        for name in named:
            if name not in names:
                listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
                near = did_you_mean(name, names)
                raise UserError(f"data.pool.{kind}.{name}: the pool has no such source{near} (sources: {listed})")


def in_draw_order(rows: np.ndarray, scores: np.ndarray | None, config: PoolConfig, seed: int) -> np.ndarray:
    """Return eligible rows, given in key order, in the order in which they are drawn, before weights and caps."""
    if config.order is PoolOrder.best:
        assert scores is not None
        return rows[np.argsort(-scores[rows], kind="stable")]
    return rows[stream(seed, "data").permutation(len(rows))]


@dataclass(frozen=True)
class Shortage:
    """Why fewer rows can be added than requested."""

    rows: int  # most that can be added
    reason: str  # what runs out; empty if there are too few eligible rows


def take(ordered: np.ndarray, added: int, source: Standardised, config: PoolConfig) -> np.ndarray | Shortage:
    """Return `added` of the eligible rows, given in draw order, with weights and caps applied."""
    keep = np.ones(len(ordered), dtype=bool)
    labels = source.labels[ordered]
    for name, most in config.caps.items():
        keep[np.flatnonzero(labels == source.names.index(name))[most:]] = False
    ordered = ordered[keep]
    if not config.weights:
        reason = "because data.pool.caps exclude the others, and" if config.caps else ""
        return ordered[:added] if len(ordered) >= added else Shortage(len(ordered), reason)
    labels = source.labels[ordered]
    queues = {name: labels == source.names.index(name) for name in sorted(config.weights)}
    queues[OTHERS] = ~np.logical_or.reduce(list(queues.values()))
    rest = 1 - sum(config.weights.values())
    weights = {**config.weights, OTHERS: rest if rest > 1e-9 else 0.0}
    positions = np.full(len(ordered), np.inf)
    ends = {}
    for name, member in queues.items():
        count = int(member.sum())
        if weights[name] > 0:
            positions[member] = (np.arange(count) + 0.5) / weights[name]
            ends[name] = (count + 0.5) / weights[name]  # where its next row would be, if it had one
    merged = np.argsort(positions, kind="stable")  # ties stay in draw order
    first = min(ends, key=ends.__getitem__)
    allowed = int((positions < ends[first]).sum())
    if added > allowed:
        return Shortage(allowed, f"with these weights, because {first} has {int(queues[first].sum()):,} rows, and")
    return ordered[merged[:added]]


def check_base(base: Standardised, filtered: Filtered, contaminated: int, wanted: int, config: DataConfig) -> None:
    """Raise a `UserError` if the base has fewer rows than wanted, after `contaminated` rows were dropped."""
    check_not_empty(base, config.base, "data.base")
    if not len(base.rows):
        count = f"{base.read:,} row{'s' if base.read != 1 else ''}"
        raise UserError(
            f"data.base: none of its {count} is usable ({_reasons('dropped', base.dropped)}); a row needs a user turn "
            "and an assistant turn that answers it"
        )
    found = int(filtered.keep.sum())
    lost = [_reasons("dropped", base.dropped)]
    lost += [_reasons("filtered", filtered.counts)] if filtered.counts else []
    lost += [f"data.contamination=drop: {contaminated:,}"] if contaminated else []
    if not found:
        raise UserError(
            f"data.base: no row is left ({'; '.join(lost)}); relax data.filters, or set data.filters.base=false"
        )
    if found < wanted:
        fix = "data.rows" if config.pool is None and config.base.rows == config.rows else "data.base.rows"
        raise UserError(
            f"data.base.rows={wanted}: the base has {found:,} usable rows of {base.read:,} ({'; '.join(lost)}); "
            f"set {fix}={found}"
        )


def check_pool(config: DataConfig, added: int) -> None:
    """Raise a `UserError` if there is no pool to draw from, or it has its own number of rows."""
    if config.pool is None:
        raise UserError(
            f"data.rows={config.rows}: the base has {config.rows - added} rows and there is no pool for the other "
            f"{added}; set data.pool, or data.rows={config.rows - added}"
        )
    if config.pool.rows is not None:
        raise UserError(
            f"data.pool.rows={config.pool.rows}: is ignored, because data.rows={config.rows} sets how many rows are "
            "drawn; set data.pool.rows=null"
        )


def check_not_empty(source: Standardised, config: SourceConfig, key: str) -> None:
    """Raise a `UserError` if a source has no row at all."""
    if not source.read:
        place = f"{key}.path={config.path}" if config.kind is SourceKind.files else f"{key}.id={config.id}"
        raise UserError(f"{place}: is empty; name a source that holds conversations")


def shortage_error(
    pool: Standardised, facts: dict[str, Any], shortage: Shortage, added: int, config: DataConfig
) -> UserError:
    """Return the error for a pool that cannot give `added` rows: how many there were and where the others went."""
    excluded = facts["excluded"]
    lost = {"in the base": excluded["in_base"], "repeats": excluded["repeats"], "dropped": _total(pool.dropped)}
    if facts["filtered"]:
        lost["filtered"] = _total(facts["filtered"])
    if facts.get("contaminated_rows"):
        lost["data.contamination=drop"] = facts["contaminated_rows"]
    if NEAR in facts:
        lost["near-duplicates"] = sum(facts[NEAR].values())
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in lost.items())
    limit = f"{shortage.rows:,} can be added {shortage.reason} " if shortage.reason else ""
    return UserError(
        f"data.pool: {facts['eligible']:,} usable rows of {pool.read:,} ({counts}), but {limit}data.rows={config.rows} "
        f"needs {added:,} of them; add rows to the pool, or set data.rows={config.rows - added + shortage.rows}"
    )


def _reasons(what: str, counts: Counts) -> str:
    reasons = [f"{reason} {sum(by_source.values()):,}" for reason, by_source in counts.items()]
    return f"{what}: {', '.join(reasons) or 'none'}"


def _total(counts: Counts) -> int:
    return sum(sum(by_source.values()) for by_source in counts.values())
