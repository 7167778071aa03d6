"""Mixes: the whole base, then random rows of the pool; nested and disjoint.

For one seed mix_100k ⊂ mix_200k ⊂ mix_300k: the pool's rows are put into one seeded order, and a larger mix takes a
longer prefix of it. Excluded before that: pool rows that a filter drops, whose text is in the base, whose text an
earlier pool row has, and near-duplicates if that is on. The seeded order starts from the order of keys, so neither file
names nor how rows are spread over files change the draw.

The base is taken whole, including rows that repeat each other, in key order. If it has more than `data.base.rows` rows,
that many are drawn with the seed (for short trials); pool rows whose text is anywhere in the base are still excluded.
"""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tometune.common.errors import UserError
from tometune.common.seeding import stream
from tometune.config.data import Contamination, DataConfig, FiltersConfig, PoolOrder, ScorerKind
from tometune.data.contamination import EvaluationTexts, overlapping_rows
from tometune.data.draw import (
    Shortage,
    check_base,
    check_names,
    check_not_empty,
    check_pool,
    eligible,
    in_draw_order,
    in_key_order,
    shortage_error,
    take,
)
from tometune.data.filters import NEAR, Filtered, Mask, Tokenizer, apply_masks, by_source, examples_of, filters
from tometune.data.near_duplicates import near_duplicates
from tometune.data.standardise import Standardised, standardise
from tometune.models.quality_scorer import scores_of

CONTAMINATED = "contaminated"


@dataclass(frozen=True)
class Part:
    """The rows that a mix takes from one source."""

    fingerprint: str  # of the source's content
    rows: Dataset  # all rows of the source
    chosen: np.ndarray  # row numbers in the order of the mix


@dataclass(frozen=True)
class Mix:
    """Exactly the configured number of conversations, in a fixed order."""

    name: str
    seed: int
    dataset: Dataset  # columns `source` and `messages` ([{role, content}]); rows as in `row_ids`
    row_ids: list[str]  # `base:<key>` or `pool:<key>`: the 128-bit hash of the normalised text in hex
    digest: str  # sha256 over the row ids in order, 20 hex digits
    sources: dict[str, int]  # rows by source, largest first
    facts: dict[str, Any]  # counts of rows read, dropped, mended, filtered and excluded, for `base` and `pool`
    parts: tuple[Part, ...]  # the base and, if rows are drawn, the pool

    # Not in mix.json:
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """A few dropped rows by reason, from base and pool: {origin, source, messages}."""

    scores: np.ndarray | None = None
    """Quality scores, shape (rows), float32, NaN for rows without one; None if no row has one."""

    def manifest(self) -> dict[str, Any]:
        """Return the content of mix.json: everything but the texts."""
        counts = {"rows": len(self.row_ids), "sources": self.sources, **self.facts}
        return {"name": self.name, "seed": self.seed, "digest": self.digest, **counts, "row_ids": self.row_ids}


@dataclass(frozen=True)
class _Selection:
    """The rows of a source that a mix takes, and what happened to the others."""

    source: Standardised
    filtered: Filtered
    chosen: np.ndarray  # row numbers in the order of the mix
    facts: dict[str, Any]


def build_mix(
    config: DataConfig,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None = None,
    texts: EvaluationTexts | None = None,
) -> Mix:
    """Build a mix; the same config, inputs and seed give the same rows on any machine.

    Args:
        config: base, pool, filters, and the exact number of rows.
        seed: of the draw, `seeds.data`.
        cache: root of the cache, which keeps standardised sources and everything computed from their rows.
        tokenizer: loads the model's tokenizer; called only if a filter counts tokens.
        texts: of the evaluation, needed if `data.contamination=drop`.

    Raises:
        UserError: a source cannot be read or has too few usable rows; says how many there were.
    """
    base = _select_base(config, seed, cache, tokenizer, texts)
    selections = {"base": base}
    added = config.rows - len(base.chosen)
    if added < 0:
        size = len(base.chosen)
        raise UserError(f"data.rows={config.rows}: is less than the base's {size}; set data.base.rows={config.rows}")
    if added:
        selections["pool"] = _select_pool(config, added, base.source, seed, cache, tokenizer, texts)
    row_ids, sources, examples = [], Counter[str](), dict[str, list[dict[str, Any]]]()
    for origin, part in selections.items():
        row_ids += _row_ids(origin, part.source.keys[part.chosen])
        sources.update(by_source(part.source, part.chosen))
        for reason, rows in part.filtered.examples.items():
            examples.setdefault(reason, []).extend(rows)
    datasets = [part.source.rows.select(part.chosen).remove_columns("key") for part in selections.values()]
    return Mix(
        name=config.name,
        seed=seed,
        dataset=concatenate_datasets(datasets),
        row_ids=row_ids,
        digest=sha256("\n".join(row_ids).encode()).hexdigest()[:20],
        sources=dict(sources.most_common()),
        facts={origin: part.facts for origin, part in selections.items()},
        parts=tuple(Part(part.source.fingerprint, part.source.rows, part.chosen) for part in selections.values()),
        examples=examples,
        scores=_scores(config, selections, cache),
    )


def _row_ids(origin: str, keys: np.ndarray) -> list[str]:
    """Return row ids from keys of shape (rows, 2); the second of two base rows with the same text ends in `-2`."""
    texts = np.frombuffer(keys.astype(">u8").tobytes().hex().encode(), dtype="S32").astype(str).tolist()
    seen: Counter[str] = Counter()
    ids = []
    for key in texts:
        seen[key] += 1
        ids.append(f"{origin}:{key}" if seen[key] == 1 else f"{origin}:{key}-{seen[key]}")
    return ids


def _scores(config: DataConfig, selections: dict[str, _Selection], cache: Path) -> np.ndarray | None:
    """Return the scores that rank the pool, or the ones that the rows came with if it is not ranked.

    Base rows are scored too if that is cheap. A classifier runs only on the pool, because it decides nothing about
    base rows; their own scores would be on another scale.
    """
    ranked = "pool" in selections and config.pool is not None and config.pool.order is PoolOrder.best
    kind = config.scorer.kind if ranked else ScorerKind.column
    found = []
    for name, part in selections.items():
        scores = part.source.scores
        if kind is ScorerKind.heuristic or (kind is ScorerKind.fineweb_edu and name == "pool"):
            scores = scores_of(part.source, config.scorer, cache)
        elif kind is ScorerKind.fineweb_edu:
            scores = None
        found.append(np.full(len(part.chosen), np.nan, np.float32) if scores is None else scores[part.chosen])
    joined: np.ndarray = np.concatenate(found)
    joined[np.isinf(joined)] = np.nan  # an infinite score has no mean
    return None if np.isnan(joined).all() else joined


def _select_base(
    config: DataConfig, seed: int, cache: Path, tokenizer: Tokenizer | None, texts: EvaluationTexts | None
) -> _Selection:
    """Take the whole base in key order, or a draw of `data.base.rows` rows."""
    base = standardise(config.base, "data.base", cache)
    active = config.filters if config.filters.base else FiltersConfig()
    near = config.near_dedup.base and config.near_dedup.threshold is not None
    masks = chain(filters(active, base, cache, tokenizer), [_near_mask_of_base(config, base, cache)] if near else [])
    filtered = apply_masks(base, "base", masks)
    contamination = _drop_contaminated(config, base, "base", filtered, texts, cache)
    order = in_key_order(base, cache)
    rows = order[filtered.keep[order]]
    wanted = config.base.rows if config.base.rows is not None else len(rows)
    check_base(base, filtered, contamination.get("contaminated_rows", 0), wanted, config)
    chosen = rows[stream(seed, "base").permutation(len(rows))[:wanted]] if len(rows) > wanted else rows
    facts = {**_facts(base, filtered), **contamination, "rows": wanted}
    if near:
        facts[NEAR] = facts["filtered"].pop(NEAR)
    return _Selection(base, filtered, chosen, facts)


def _select_pool(
    config: DataConfig,
    added: int,
    base: Standardised,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None,
    texts: EvaluationTexts | None,
) -> _Selection:
    """Draw `added` rows from the pool."""
    check_pool(config, added)
    assert config.pool is not None
    pool = standardise(config.pool, "data.pool", cache)
    check_not_empty(pool, config.pool, "data.pool")
    check_names(config.pool, pool.names)
    filtered = apply_masks(pool, "pool", filters(config.filters, pool, cache, tokenizer))
    contamination = _drop_contaminated(config, pool, "pool", filtered, texts, cache)
    scores = scores_of(pool, config.scorer, cache) if config.pool.order is PoolOrder.best else None
    order = in_key_order(pool, cache)
    found = eligible(pool, order[filtered.keep[order]], base, scores)
    rows = found.rows if scores is None else found.rows[np.argsort(-scores[found.rows], kind="stable")]
    excluded = {"in_base": found.in_base, "repeats": found.repeats}
    facts = {
        **_facts(pool, filtered),
        **contamination,
        "excluded": {reason: len(numbers) for reason, numbers in excluded.items()},
        "excluded_sources": {reason: by_source(pool, numbers) for reason, numbers in excluded.items()},
    }
    near_facts = {}
    if config.near_dedup.threshold is not None:
        fixed = _first_of_each_text(base)
        if config.near_dedup.base:
            fixed = fixed[_near_mask_of_base(config, base, cache).keep[fixed]]
        near, near_base = near_duplicates((base, fixed), (pool, rows), config.near_dedup.threshold, cache)
        near_facts = {NEAR: by_source(pool, rows[near]), "near_base": by_source(pool, rows[near_base])}
        filtered.examples[NEAR] = examples_of(pool, "pool", rows[near])
        rows = rows[~near]
    facts |= {"eligible": len(rows), "rows": added, **near_facts}
    chosen = take(in_draw_order(rows, scores, config.pool, seed), added, pool, config.pool)
    if isinstance(chosen, Shortage):
        raise shortage_error(pool, facts, chosen, added, config)
    return _Selection(pool, filtered, chosen, facts)


def _drop_contaminated(
    config: DataConfig,
    source: Standardised,
    origin: str,
    filtered: Filtered,
    texts: EvaluationTexts | None,
    cache: Path,
) -> dict[str, Any]:
    """Remove from `filtered` the rows that overlap with the evaluation, if they are to be dropped.

    Returns:
        `contaminated_rows`, counted among the rows that the filters kept, and `contaminated`: all such rows by task
        and source.
    """
    if config.contamination is not Contamination.drop:
        return {}
    if texts is None:
        raise ValueError("data.contamination=drop needs the evaluation texts")
    contaminated, counts = overlapping_rows(source, texts, cache)
    dropped = np.flatnonzero(contaminated & filtered.keep)
    filtered.examples[CONTAMINATED] = examples_of(source, origin, dropped)
    filtered.keep[dropped] = False
    return {"contaminated": counts, "contaminated_rows": len(dropped)}


def _near_mask_of_base(config: DataConfig, base: Standardised, cache: Path) -> Mask:
    """Return the mask of base rows that are not near-duplicates; rows with the same text are not compared."""
    assert config.near_dedup.threshold is not None
    rows = _first_of_each_text(base)
    near, _ = near_duplicates((base, rows[:0]), (base, rows), config.near_dedup.threshold, cache)
    keep = np.ones(len(base.rows), dtype=bool)
    keep[rows[near]] = False
    return Mask(NEAR, keep)


def _first_of_each_text(source: Standardised) -> np.ndarray:
    """Return one row number for each text, in key order."""
    order = np.lexsort((source.keys[:, 1], source.keys[:, 0]))
    keys = source.keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return order[begins]


def _facts(source: Standardised, filtered: Filtered) -> dict[str, Any]:
    """Return the counts of standardising and filtering, for the manifest."""
    counts = {"read": source.read, "usable": len(source.rows), "dropped": source.dropped, "mended": source.mended}
    return {"fingerprint": source.fingerprint, **counts, "filtered": dict(filtered.counts)}
