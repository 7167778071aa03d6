"""Mixes: the whole base, then random rows of the pool, nested and disjoint.

For one seed mix_100k ⊂ mix_200k ⊂ mix_300k: the pool's rows are put in one seeded order, of which a larger mix takes a
longer beginning. Left out before that: pool rows that a filter leaves out, whose normalised text is in the base, all
but the first of pool rows that share it, and near-duplicates where they are asked for. Rows are put in the order of
their keys before the seeded one, so neither the names of the pool's files nor how its rows are spread over them change
which texts are drawn.

A base is taken as it is, with the rows that repeat each other. One with more rows than `data.base.rows` gives that many
of them by a seeded draw, for trying things out; then too, pool rows whose text is anywhere in the base are left out.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tometune.config.data import Contamination, DataConfig, PoolConfig, PoolOrder
from tometune.config.errors import UserError
from tometune.config.filters import FiltersConfig
from tometune.data import shortage
from tometune.data.clean.masks import EXAMPLES, Filtered, Mask, Tokenizer, by_source, examples_of, filters, together
from tometune.data.clean.near import near_duplicates
from tometune.data.clean.scorer import scores_of
from tometune.data.contamination.overlaps import HeldOut, overlapping
from tometune.data.draw import Short, check_names, in_draw_order, take
from tometune.data.eligible import eligible
from tometune.data.standardise import Standardised, standardise
from tometune.data.tokenised import Part
from tometune.seeding import stream

log = logging.getLogger(__name__)

NEAR, CONTAMINATED = "near_duplicate", "contaminated"


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
    """Some of the rows that were left out, by reason: {origin, source, messages}. Not part of the manifest."""

    def manifest(self) -> dict[str, Any]:
        """Return what mix.json holds: everything but the texts."""
        counts = {"rows": len(self.row_ids), "sources": self.sources, **self.facts}
        return {"name": self.name, "seed": self.seed, "digest": self.digest, **counts, "row_ids": self.row_ids}


@dataclass(frozen=True)
class _Part:
    """What the base or the pool gives to a mix."""

    source: Standardised
    filtered: Filtered
    chosen: np.ndarray
    """Row numbers in the order of the mix."""

    facts: dict[str, Any]


def build_mix(
    config: DataConfig, seed: int, cache: Path, tokenizer: Tokenizer | None = None, held_out: HeldOut | None = None
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
    base = _base(config, seed, cache, tokenizer, held_out)
    parts = {"base": base}
    added = config.rows - len(base.chosen)
    if added < 0:
        wanted = len(base.chosen)
        raise UserError(f"data.rows={config.rows}: is less than the base's {wanted}; set data.base.rows={config.rows}")
    if added:
        parts["pool"] = _pool(config, added, base.source, seed, cache, tokenizer, held_out)
    row_ids = [row_id for name, part in parts.items() for row_id in _ids(name, _hex(part.source.keys[part.chosen]))]
    dataset = concatenate_datasets(
        [part.source.rows.select(part.chosen).remove_columns("key") for part in parts.values()]
    )
    digest = sha256("\n".join(row_ids).encode()).hexdigest()[:20]
    facts = {name: part.facts for name, part in parts.items()}
    taken = tuple(Part(part.source.fingerprint, part.source.rows, part.chosen) for part in parts.values())
    return Mix(config.name, seed, dataset, row_ids, digest, _sources(parts), facts, taken, _examples(parts))


def _base(config: DataConfig, seed: int, cache: Path, tokenizer: Tokenizer | None, held_out: HeldOut | None) -> _Part:
    """Return all of the base, or as much as the config wants of it."""
    base = standardise(config.base, "data.base", cache)
    on = config.filters if config.filters.base else FiltersConfig()
    near = config.near_dedup.base and config.near_dedup.threshold is not None
    masks = chain(filters(on, base, cache, tokenizer), [_near_in_base(config, base, cache)] if near else [])
    filtered = together(base, "base", masks)
    shared = _without_held_out(config, base, "base", filtered, held_out, cache)
    rows = np.flatnonzero(filtered.keep)
    wanted = config.base.rows if config.base.rows is not None else len(rows)
    shortage.check_base(base, filtered, shared.get("contaminated_rows", 0), wanted, config)
    chosen = rows[_draw(_hex(base.keys[rows]), wanted, seed, "base")] if len(rows) > wanted else rows
    facts = {**_facts(base, filtered), **shared, "rows": wanted}
    if near:
        facts["near_duplicates"] = facts["filtered"].pop(NEAR)
    return _Part(base, filtered, chosen, facts)


def _pool(
    config: DataConfig,
    added: int,
    base: Standardised,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None,
    held_out: HeldOut | None,
) -> _Part:
    """Draw rows from the pool."""
    shortage.check_pool(config, added)
    assert config.pool is not None
    pool = standardise(config.pool, "data.pool", cache)
    shortage.not_empty(pool, config.pool, "data.pool")
    check_names(config.pool, pool.names)
    filtered = together(pool, "pool", filters(config.filters, pool, cache, tokenizer))
    shared = _without_held_out(config, pool, "pool", filtered, held_out, cache)
    scores = scores_of(pool, config.scorer, cache) if config.pool.order is PoolOrder.best else None
    found = eligible(pool, filtered.keep, base, scores, _by_source(config.pool) or not filtered.keep.all())
    rows, near = _without_near(config, base, pool, found.rows, cache)
    excluded = {"in_base": found.in_base, "repeats": found.repeats}
    facts = {**_facts(pool, filtered), **shared, "excluded": excluded, "eligible": len(rows), "rows": added}
    if near is not None:
        facts["near_duplicates"] = by_source(pool, near)
        filtered.examples[NEAR] = examples_of(pool, "pool", near)
    chosen = take(in_draw_order(rows, scores, config.pool, seed), added, pool, config.pool)
    if isinstance(chosen, Short):
        raise shortage.of_pool(pool, facts, chosen, added, config)
    return _Part(pool, filtered, chosen, facts)


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


def _by_source(pool: PoolConfig) -> bool:
    """Tell whether it matters which of the rows that share a text is taken."""
    return bool(pool.weights or pool.caps) or pool.order is PoolOrder.best


def _near_in_base(config: DataConfig, base: Standardised, cache: Path) -> Mask:
    """Return the mask of base rows that are no near-duplicates of others; rows of one text are not compared."""
    assert config.near_dedup.threshold is not None
    rows = _firsts(base)
    near, _ = near_duplicates((base, rows), (base, rows[:0]), config.near_dedup.threshold, cache)
    keep = np.ones(len(base.rows), dtype=bool)
    keep[rows[near]] = False
    return Mask(NEAR, keep)


def _without_near(
    config: DataConfig, base: Standardised, pool: Standardised, rows: np.ndarray, cache: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the pool's rows without near-duplicates, and those; None where they are not looked for."""
    if config.near_dedup.threshold is None:
        return rows, None
    _, near = near_duplicates((base, _firsts(base)), (pool, rows), config.near_dedup.threshold, cache)
    return rows[~near], rows[near]


def _firsts(base: Standardised) -> np.ndarray:
    """Return the numbers of the base's rows, one for each text, in the order of their keys."""
    order = np.lexsort((base.keys[:, 1], base.keys[:, 0]))
    keys = base.keys[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return order[begins]


def _draw(keys: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """Draw row numbers of a base that is larger than asked for, independent of the order of its files."""
    order = np.argsort(keys, kind="stable")
    return order[stream(seed, name).permutation(len(order))[:count]]


def _hex(keys: np.ndarray) -> np.ndarray:
    """Return keys, shape (rows, 2), as hexadecimal strings, dtype S32."""
    return np.frombuffer(keys.astype(">u8").tobytes().hex().encode(), dtype="S32")


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


def _facts(source: Standardised, filtered: Filtered) -> dict[str, Any]:
    """Return what standardising and filtering counted, for the manifest."""
    counts = {"read": source.read, "usable": len(source.rows), "dropped": source.dropped, "mended": source.mended}
    return {"fingerprint": source.fingerprint, **counts, "filtered": dict(filtered.counts)}


def _sources(parts: dict[str, _Part]) -> dict[str, int]:
    """Count the rows by source."""
    total: Counter[str] = Counter()
    for part in parts.values():
        total.update(by_source(part.source, part.chosen))
    return dict(total.most_common())


def _examples(parts: dict[str, _Part]) -> dict[str, list[dict[str, Any]]]:
    """Put together what the base's and the pool's masks left out."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for part in parts.values():
        for reason, rows in part.filtered.examples.items():
            examples[reason] = [*examples.get(reason, []), *rows][:EXAMPLES]
    return examples
