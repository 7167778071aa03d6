"""Mixes: the whole base, then random rows of the pool, nested and disjoint.

For one seed mix_100k ⊂ mix_200k ⊂ mix_300k: the pool's rows are put in one seeded order, of which a larger mix takes a
longer beginning. Left out before that: pool rows that a filter leaves out, whose normalised text is in the base, all
but the first of pool rows that share it, and near-duplicates where they are asked for. Rows are put in the order of
their keys before the seeded one (of equal keys, by source, then by what was said letter by letter), so neither the
names of files nor how rows are spread over them change which texts are drawn, or in which order.

A base is taken whole, with the rows that repeat each other, in the order of keys. One with more rows than
`data.base.rows` gives that many of them by a seeded draw, for trying things out; then too, pool rows whose text is
anywhere in the base are left out.
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
from tometune.config.data import Contamination, DataConfig, PoolOrder
from tometune.config.filters import FiltersConfig, ScorerKind
from tometune.data.contamination import EvaluationTexts, overlapping_rows
from tometune.data.draw import (
    Short,
    check_base,
    check_names,
    check_pool,
    eligible,
    in_draw_order,
    in_key_order,
    not_empty,
    take,
    too_few,
)
from tometune.data.filters import NEAR, Filtered, Mask, Tokenizer, by_source, examples_of, filters, together
from tometune.data.near_duplicates import near_duplicates
from tometune.data.standardise import Standardised, standardise
from tometune.models.quality_scorer import scores_of


@dataclass(frozen=True)
class Part:
    """What a mix takes of a source."""

    fingerprint: str
    """Of the source's content."""

    rows: Dataset
    """All of its rows, with a column `messages`."""

    chosen: np.ndarray
    """Row numbers, in the order of the mix."""


@dataclass(frozen=True)
class Taken:
    """What the base or the pool gives to a mix."""

    source: Standardised
    filtered: Filtered
    chosen: np.ndarray
    """Row numbers in the order of the mix."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Mix:
    """Exactly the configured number of conversations, in a fixed order."""

    name: str
    seed: int
    dataset: Dataset
    """Columns `source` and `messages` ([{role, content}]); rows as in `row_ids`."""

    row_ids: list[str]
    """`base:<key>` or `pool:<key>`, where the key is the 128-bit hash of the normalised text, in hex."""

    digest: str
    """sha256 over the row ids in order, 20 hex digits."""

    sources: dict[str, int]
    """Rows by source, most first."""

    facts: dict[str, Any]
    """What was read, dropped, mended, filtered and excluded, for `base` and `pool`."""

    parts: tuple[Part, ...]
    """The base and, where rows are drawn from it, the pool."""

    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Some of the rows that were left out, by reason, a few of base and pool each: {origin, source, messages}. Not in
    the manifest."""

    scores: np.ndarray | None = None
    """Quality scores, shape (rows), float32, NaN where a row has none; None where no row has one. Not in mix.json."""

    def manifest(self) -> dict[str, Any]:
        """Return what mix.json holds: everything but the texts."""
        counts = {"rows": len(self.row_ids), "sources": self.sources, **self.facts}
        return {"name": self.name, "seed": self.seed, "digest": self.digest, **counts, "row_ids": self.row_ids}


def build_mix(
    config: DataConfig,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None = None,
    held_out: EvaluationTexts | None = None,
) -> Mix:
    """Build the mix of a config; the same config, inputs and seed give the same rows on any machine.

    Args:
        config: base, pool, what makes rows eligible, and the exact number of rows.
        seed: of the draw, `seeds.data`.
        cache: root of the cache; standardised sources, and what is worked out of their rows, are kept there.
        tokenizer: loads the model's tokenizer; called only where a filter counts tokens.
        held_out: the texts of the evaluation, which `data.contamination=drop` cannot do without; see `inputs.mix_of`.

    Raises:
        UserError: a source cannot be read or has too few usable rows; says how many there were.
    """
    base = of_base(config, seed, cache, tokenizer, held_out)
    parts = {"base": base}
    added = config.rows - len(base.chosen)
    if added < 0:
        wanted = len(base.chosen)
        raise UserError(f"data.rows={config.rows}: is less than the base's {wanted}; set data.base.rows={config.rows}")
    if added:
        parts["pool"] = of_pool(config, added, base.source, seed, cache, tokenizer, held_out)
    row_ids = [
        row_id for name, part in parts.items() for row_id in _ids(name, hexadecimal(part.source.keys[part.chosen]))
    ]
    dataset = concatenate_datasets(
        [part.source.rows.select(part.chosen).remove_columns("key") for part in parts.values()]
    )
    digest = sha256("\n".join(row_ids).encode()).hexdigest()[:20]
    facts = {name: part.facts for name, part in parts.items()}
    taken = tuple(Part(part.source.fingerprint, part.source.rows, part.chosen) for part in parts.values())
    scores = _scores(config, parts, cache)
    return Mix(config.name, seed, dataset, row_ids, digest, _sources(parts), facts, taken, _examples(parts), scores)


def _ids(origin: str, keys: np.ndarray) -> list[str]:
    """Return row ids; rows of the base that share a text are told apart by a number."""
    texts = keys.astype(str).tolist()
    if len(np.unique(keys)) == len(keys):
        return [f"{origin}:{key}" for key in texts]
    seen: Counter[str] = Counter()
    ids = []
    for key in texts:
        seen[key] += 1
        ids.append(f"{origin}:{key}" if seen[key] == 1 else f"{origin}:{key}-{seen[key]}")
    return ids


def _scores(config: DataConfig, parts: dict[str, Taken], cache: Path) -> np.ndarray | None:
    """Return the scores that the rows came with, or where the pool is ranked those it is ranked by.

    The base gets these too where they are cheap; a classifier is not shown rows that it has nothing to decide about.
    """
    ranked = "pool" in parts and config.pool is not None and config.pool.order is PoolOrder.best
    kind = config.scorer.kind if ranked else ScorerKind.column
    found = []
    for name, part in parts.items():
        scores = part.source.scores
        if kind is ScorerKind.heuristic or (kind is ScorerKind.fineweb_edu and name == "pool"):
            scores = scores_of(part.source, config.scorer, cache)
        elif kind is ScorerKind.fineweb_edu:
            scores = None  # of another scale
        found.append(np.full(len(part.chosen), np.nan, np.float32) if scores is None else scores[part.chosen])
    together: np.ndarray = np.concatenate(found)
    together[np.isinf(together)] = np.nan  # has no mean
    return None if np.isnan(together).all() else together


def _sources(parts: dict[str, Taken]) -> dict[str, int]:
    """Count the rows by source."""
    total: Counter[str] = Counter()
    for part in parts.values():
        total.update(by_source(part.source, part.chosen))
    return dict(total.most_common())


def _examples(parts: dict[str, Taken]) -> dict[str, list[dict[str, Any]]]:
    """Put together what the base's and the pool's masks left out."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for part in parts.values():
        for reason, rows in part.filtered.examples.items():
            examples[reason] = [*examples.get(reason, []), *rows]
    return examples


CONTAMINATED = "contaminated"


def of_base(
    config: DataConfig, seed: int, cache: Path, tokenizer: Tokenizer | None, held_out: EvaluationTexts | None
) -> Taken:
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
    check_base(base, filtered, shared.get("contaminated_rows", 0), wanted, config)
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
    held_out: EvaluationTexts | None,
) -> Taken:
    """Draw rows from the pool."""
    check_pool(config, added)
    assert config.pool is not None
    pool = standardise(config.pool, "data.pool", cache)
    not_empty(pool, config.pool, "data.pool")
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
        raise too_few(pool, facts, chosen, added, config)
    return Taken(pool, filtered, chosen, facts)


def _without_held_out(
    config: DataConfig,
    source: Standardised,
    origin: str,
    filtered: Filtered,
    held_out: EvaluationTexts | None,
    cache: Path,
) -> dict[str, Any]:
    """Take out of `filtered` the rows that share a run of words with the evaluation, where they are to be dropped.

    Returns:
        `contaminated_rows`, of those that the filters left, and `contaminated`: all of them, by task and source.
    """
    if config.contamination is not Contamination.drop:
        return {}
    if held_out is None:
        raise ValueError("data.contamination=drop needs the texts of the evaluation")
    tainted, counts = overlapping_rows(source, held_out, cache)
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
