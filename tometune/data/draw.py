"""The draw: the rows of a pool in one order, from which every mix takes a prefix, and a larger mix a longer one.

The order is random (`mix` makes the seeded permutation), or by quality scores, the best first (`data.pool.order`).

Weights: each weighted source, and all other sources together, form a queue. The k-th row of a queue with weight w gets
the position (k − ½) / w, and the queues are merged by position, ties in draw order. Every prefix of the merged order
then has each share to within about one row.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tometune.common.errors import UserError, did_you_mean, some
from tometune.common.progress import progress
from tometune.config.data import DataConfig, PoolConfig, PoolOrder, ScorerKind, SourceConfig, SourceKind
from tometune.data.features import cached_array, feature
from tometune.data.filters import NEAR
from tometune.data.standardise import Counts, Standardised

VERSION = 1  # raised when the same rows get another order
IFD_VERSION = 3  # of the scores of `data.pool.order=ifd`; raised when the same rows get other ones
SCORES_VERSION = 2  # raised when the scorer gets other texts, or other texts together, and so gives other scores
SCORED = 2_000  # rows that the scorer gets at once
OTHERS = "all other sources"


def in_key_order(source: Standardised, cache: Path) -> np.ndarray:
    """Return all row numbers sorted by key, then source name, then a hash of the messages, however files hold them."""
    key = {"source": source.fingerprint, "version": VERSION}
    return cached_array(cache, "order", key, lambda: _key_order(source))


def starts_group(keys: np.ndarray) -> np.ndarray:
    """Return which of sorted keys differ from the one before."""
    return np.append(True, keys[1:] != keys[:-1])[: len(keys)]


def _key_order(source: Standardised) -> np.ndarray:
    order = np.lexsort((source.labels, source.keys))
    begins = starts_group(source.keys[order]) | starts_group(source.labels[order])
    # Only rows that share key and source need the hash of their messages; they are read in the order of the file.
    shared = ~begins | ~np.append(begins[1:], True)
    hashes = np.zeros(len(order), dtype="S32")
    for number in np.sort(order[shared]).tolist():
        row = source.rows[number]
        messages = json.dumps(row["messages"]) + (row["extras"] or "")
        hashes[number] = blake2b(messages.encode(), digest_size=16).hexdigest()
    return np.lexsort((hashes, source.labels, source.keys))


class Scorer(Protocol):
    """A model that scores conversations, float32; higher is better. The fingerprint identifies it."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> np.ndarray: ...


def scores_of(source: Standardised, kind: str, scorer: Scorer | None, cache: Path) -> np.ndarray:
    """Return the score of every row, shape (rows), float32; higher is better, -inf for rows without a score.

    `kind` is a result of `config.data.ranking`.
    """
    if kind == PoolOrder.longest:
        return feature(source, "answer_characters", cache).astype(np.float32)
    if kind == ScorerKind.heuristic:
        return feature(source, "heuristic", cache)
    if kind == ScorerKind.column:
        if source.scores is None:
            raise UserError("data.scorer.kind=column: no row of the pool has a score; set data.pool.score=COLUMN")
        return np.where(np.isnan(source.scores), np.float32(-np.inf), source.scores)
    assert scorer is not None, f"{kind} needs a scorer"

    def build() -> np.ndarray:
        scores = np.empty(len(source.rows), dtype=np.float32)
        rows = in_key_order(source, cache)  # which texts come together does not depend on the files
        with progress("rows scored", len(rows)) as advance:
            for start in range(0, len(rows), SCORED):
                numbers = rows[start : start + SCORED]
                scores[numbers] = scorer(source.rows.select_columns("messages")[numbers]["messages"])
                advance(len(numbers))
        return scores

    key = {"source": source.fingerprint, "classifier": scorer.fingerprint, "version": SCORES_VERSION}
    return cached_array(cache, "features", key, build)


def eligible(
    pool: Standardised, numbers: np.ndarray, base: Standardised, scores: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return one row of the pool for each text that is not in the base, in key order, and the rows that are excluded.

    Of rows with the same text, the first by source name wins, then the one with the best score, then the first in the
    given order. `numbers` are the rows that passed every filter, in key order; `scores` those of the whole pool.
    Excluded are rows whose text is in the base (`in_base`), or in an earlier row of the pool (`repeats`), or both.
    """
    if scores is not None:
        numbers = numbers[np.lexsort((-scores[numbers], pool.labels[numbers], pool.keys[numbers]))]
    keys = pool.keys[numbers]
    first, in_base = starts_group(keys), np.isin(keys, base.keys)
    return numbers[first & ~in_base], {"in_base": numbers[in_base], "repeats": numbers[~first]}


def take(ordered: np.ndarray, added: int, source: Standardised, config: PoolConfig) -> tuple[np.ndarray, str]:
    """Return up to `added` of the eligible rows, given in draw order, with `only`, `without`, weights and caps applied.

    The text says why there are fewer, if these are the reason. Sources are left out of the order, not of the pool that
    is ordered, so a mix without a source shares all its other rows with the mix that has it.
    """
    labels = source.labels[ordered]
    keep = np.isin(labels, [source.names.index(name) for name in config.only or config.without])
    keep = keep if config.only else ~keep
    for name, most in config.caps.items():
        keep[np.flatnonzero(labels == source.names.index(name))[most:]] = False
    ordered = ordered[keep]
    if not config.weights:
        limits = [name for name in ("only", "without", "caps") if getattr(config, name)]
        reason = f"because data.pool.{limits[-1]} excludes the others, and" if limits else ""
        return ordered[:added], reason
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
    reason = f"with these weights, because {first} has {int(queues[first].sum()):,} rows, and"
    return ordered[merged[: min(added, allowed)]], reason


def check_base(base: Standardised, found: int, facts: dict[str, Any], wanted: int, config: DataConfig) -> None:
    """Raise a `UserError` if fewer rows of the base than wanted were found after filtering; `facts` counts them."""
    _check_not_empty(base, config.base, "data.base")
    if not len(base.rows):
        count = f"{base.read:,} row{'s' if base.read != 1 else ''}"
        needs = "a row needs a user turn and an assistant turn that answers it"
        raise UserError(f"data.base: none of its {count} is usable ({_reasons('dropped', base.dropped)}); {needs}")
    lost = [_reasons("dropped", base.dropped | base.malformed)]
    lost += [f"{place}: {defect}" for place, defect in base.bad[:1]]
    lost += [_reasons("filtered", facts["filtered"])] if facts["filtered"] else []
    lost += [f"data.contamination=drop: {facts['contaminated_rows']:,}"] if facts.get("contaminated_rows") else []
    why = "; ".join(lost)
    if not found:
        fix = "relax data.filters, or set data.filters.base=false"
        if facts.get("contaminated_rows"):
            fix = "choose a base without the evaluation's texts, or set data.contamination=report"
        raise UserError(f"data.base: no row is left ({why}); {fix}")
    if found < wanted:
        most = found if config.rows is None else min(found, config.rows)
        both = not config.draws and config.rows is not None and most < config.rows
        fix = f"set data.rows={most} data.base.rows={most}" if both else f"set data.base.rows={most}"
        raise UserError(f"data.base.rows={wanted}: the base has {found:,} usable rows of {base.read:,} ({why}); {fix}")


def check_pool(config: DataConfig, added: int) -> None:
    """Raise a `UserError` if there is no pool to draw from, or it has its own number of rows."""
    if config.pool is None or not config.draws:
        assert config.rows is not None  # else there are no others
        found = config.rows - added
        no_pool = f"the base has {found} rows and there is no pool for the other {added}; choose a mix with one"
        raise UserError(f"data.rows={config.rows}: {no_pool}, e.g. data=files_200k, or set data.rows={found}")
    if config.pool.rows is not None:
        raise UserError(f"data.pool.rows={config.pool.rows}: is ignored next to {_size(config)}; set it to null")


def check_sources(pool: Standardised, config: PoolConfig) -> None:
    """Raise a `UserError` if the pool is empty, or lacks a source that a setting names."""
    _check_not_empty(pool, config, "data.pool")
    for kind in ("weights", "caps", "only", "without"):
        listed = kind in ("only", "without")  # the others are dicts, so a name is a part of the key
        for name in getattr(config, kind):
            check_source(f"data.pool.{kind}{f'=[{name}]' if listed else f'.{name}'}", name, pool.names)


def check_source(key: str, name: str, names: Sequence[str]) -> None:
    """Raise a `UserError` unless the pool has a source; `key` names the setting."""
    if name not in names:
        raise UserError(f"{key}: the pool has no such source{did_you_mean(name, names)} (sources: {some(names, 12)})")


def _check_not_empty(source: Standardised, config: SourceConfig, key: str) -> None:
    if not source.read:
        place = f"{key}.path={config.path}" if config.kind is SourceKind.files else f"{key}.id={config.id}"
        raise UserError(f"{place}: is empty; name a source that holds conversations")


def shortage_error(pool: Standardised, facts: dict[str, Any], found: int, reason: str, config: DataConfig) -> UserError:
    """Return the error for a pool that can give only `found` rows: how many there were and where the others went."""
    excluded, added = facts["excluded"], facts["rows"]
    lost = {
        "in the base": excluded["in_base"],
        "repeats": excluded["repeats"],
        "dropped": _total(pool.dropped | pool.malformed),
        "filtered": _total(facts["filtered"]) if facts["filtered"] else None,
        "data.contamination=drop": facts.get("contaminated_rows") or None,
        "held out": facts.get("held_out"),
        "near-duplicates": sum(facts[NEAR].values()) if NEAR in facts else None,
    }
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in lost.items() if count is not None)
    limit = f"{found:,} can be added {reason} " if reason else ""
    fix = f"data.pool.add={found}" if config.rows is None else f"data.rows={config.rows - added + found}"
    return UserError(
        f"data.pool: {facts['eligible']:,} usable rows of {pool.read:,} ({counts}), but {limit}{_size(config)} "
        f"needs {added:,} of them; add rows to the pool, or set {fix}"
    )


def _size(config: DataConfig) -> str:
    """Return the setting that says how many rows are drawn."""
    if config.rows is None and config.pool is not None:
        return f"data.pool.add={config.pool.add}"
    return f"data.rows={config.rows}"


def _reasons(what: str, counts: Counts) -> str:
    reasons = [f"{reason} {sum(by_source.values()):,}" for reason, by_source in counts.items()]
    return f"{what}: {', '.join(reasons) or 'none'}"


def _total(counts: Counts) -> int:
    return sum(sum(by_source.values()) for by_source in counts.values())
