"""What a mix takes of its base and of its pool: masks, then one order, then as many rows as are wanted."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.seeding import stream
from tometune.config.data import Contamination, DataConfig, PoolOrder
from tometune.config.filters import FiltersConfig
from tometune.data import shortage
from tometune.data.clean.masks import NEAR, Filtered, Mask, Tokenizer, by_source, examples_of, filters, together
from tometune.data.clean.near import near_duplicates
from tometune.data.contamination.overlaps import HeldOut, overlapping
from tometune.data.draw import Short, check_names, in_draw_order, take
from tometune.data.eligible import eligible
from tometune.data.order import in_key_order
from tometune.data.standardise import Standardised, standardise
from tometune.models.quality_scorer import scores_of

CONTAMINATED = "contaminated"


@dataclass(frozen=True)
class Taken:
    """What the base or the pool gives to a mix."""

    source: Standardised
    filtered: Filtered
    chosen: np.ndarray
    """Row numbers in the order of the mix."""

    facts: dict[str, Any]


def of_base(config: DataConfig, seed: int, cache: Path, tokenizer: Tokenizer | None, held_out: HeldOut | None) -> Taken:
    """Return all of the base in the order of its keys, or a draw of as many rows as the config wants of it."""
    base = standardise(config.base, "data.base", cache)
    on = config.filters if config.filters.base else FiltersConfig()
    near = config.near_dedup.base and config.near_dedup.threshold is not None
    masks = chain(filters(on, base, cache, tokenizer), [_near_in_base(config, base, cache)] if near else [])
    filtered = together(base, "base", masks)
    shared = _without_held_out(config, base, "base", filtered, held_out, cache)
    order = in_key_order(base, cache)
    rows = order[filtered.keep[order]]
    wanted = config.base.rows if config.base.rows is not None else len(rows)
    shortage.check_base(base, filtered, shared.get("contaminated_rows", 0), wanted, config)
    chosen = rows[stream(seed, "base").permutation(len(rows))[:wanted]] if len(rows) > wanted else rows
    facts = {**_facts(base, filtered), **shared, "rows": wanted}
    if near:
        facts[NEAR] = facts["filtered"].pop(NEAR)
    return Taken(base, filtered, chosen, facts)


def of_pool(
    config: DataConfig,
    added: int,
    base: Standardised,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None,
    held_out: HeldOut | None,
) -> Taken:
    """Draw rows from the pool."""
    shortage.check_pool(config, added)
    assert config.pool is not None
    pool = standardise(config.pool, "data.pool", cache)
    shortage.not_empty(pool, config.pool, "data.pool")
    check_names(config.pool, pool.names)
    filtered = together(pool, "pool", filters(config.filters, pool, cache, tokenizer))
    shared = _without_held_out(config, pool, "pool", filtered, held_out, cache)
    scores = scores_of(pool, config.scorer, cache) if config.pool.order is PoolOrder.best else None
    order = in_key_order(pool, cache)
    found = eligible(pool, order[filtered.keep[order]], base, scores)
    ranked = found.rows if scores is None else found.rows[np.argsort(-scores[found.rows], kind="stable")]
    rows, near = _without_near(config, base, pool, ranked, cache)
    out = {"in_base": found.in_base, "repeats": found.repeats}
    excluded = {reason: len(some) for reason, some in out.items()}
    sources = {reason: by_source(pool, some) for reason, some in out.items()}
    facts = {**_facts(pool, filtered), **shared, "excluded": excluded, "excluded_sources": sources}
    facts |= {"eligible": len(rows), "rows": added}
    if near is not None:
        facts[NEAR], facts["near_base"] = (by_source(pool, some) for some in near)
        filtered.examples[NEAR] = examples_of(pool, "pool", near[0])
    chosen = take(in_draw_order(rows, scores, config.pool, seed), added, pool, config.pool)
    if isinstance(chosen, Short):
        raise shortage.of_pool(pool, facts, chosen, added, config)
    return Taken(pool, filtered, chosen, facts)


def _without_held_out(
    config: DataConfig, source: Standardised, origin: str, filtered: Filtered, held_out: HeldOut | None, cache: Path
) -> dict[str, Any]:
    """Take out of `filtered` the rows that share a run of words with the evaluation, where they are to be dropped.

    Returns:
        `contaminated_rows`, of those that the filters left, and `contaminated`: all of them, by task and source.
    """
    if config.contamination is not Contamination.drop:
        return {}
    if held_out is None:
        raise ValueError("data.contamination=drop needs the texts of the evaluation")
    tainted, counts = overlapping(source, held_out, cache)
    out = np.flatnonzero(tainted & filtered.keep)
    filtered.examples[CONTAMINATED] = examples_of(source, origin, out)
    filtered.keep[out] = False
    return {"contaminated": counts, "contaminated_rows": len(out)}


def _near_in_base(config: DataConfig, base: Standardised, cache: Path) -> Mask:
    """Return the mask of base rows that are no near-duplicates of others; rows of one text are not compared."""
    assert config.near_dedup.threshold is not None
    rows = _firsts(base)
    near, _ = near_duplicates((base, rows[:0]), (base, rows), config.near_dedup.threshold, cache)
    keep = np.ones(len(base.rows), dtype=bool)
    keep[rows[near]] = False
    return Mask(NEAR, keep)


def _without_near(
    config: DataConfig, base: Standardised, pool: Standardised, rows: np.ndarray, cache: Path
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Return the pool's rows without near-duplicates; and those, and which of them are near the base's, or None.

    Args:
        config: of the mix.
        base: all its rows count, but for those that are near-duplicates of others and left out for that.
        pool: the other source.
        rows: numbers of its rows; of those that are alike the first stays.
        cache: root of the cache.
    """
    if config.near_dedup.threshold is None:
        return rows, None
    fixed = _firsts(base)
    if config.near_dedup.base:
        fixed = fixed[_near_in_base(config, base, cache).keep[fixed]]
    near, of_base = near_duplicates((base, fixed), (pool, rows), config.near_dedup.threshold, cache)
    return rows[~near], (rows[near], rows[of_base])


def _firsts(base: Standardised) -> np.ndarray:
    """Return the numbers of the base's rows, one for each text, in the order of their keys."""
    order = np.lexsort((base.keys[:, 1], base.keys[:, 0]))
    keys = base.keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return order[begins]


def hexadecimal(keys: np.ndarray) -> np.ndarray:
    """Return keys, shape (rows, 2), as hexadecimal strings, dtype S32."""
    return np.frombuffer(keys.astype(">u8").tobytes().hex().encode(), dtype="S32")


def _facts(source: Standardised, filtered: Filtered) -> dict[str, Any]:
    """Return what standardising and filtering counted, for the manifest."""
    counts = {"read": source.read, "usable": len(source.rows), "dropped": source.dropped, "mended": source.mended}
    return {"fingerprint": source.fingerprint, **counts, "filtered": dict(filtered.counts)}
