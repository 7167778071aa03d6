"""Mixes: the whole base, then random rows of the pool; nested and disjoint (docs/data.md).

For one seed mix_100k ⊂ mix_200k ⊂ mix_300k: the pool's rows are sorted by key, so that files do not matter, then put
into one seeded order, of which a larger mix takes a longer prefix. Held-out rows are chosen before anything is drawn.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tometune.common.errors import UserError
from tometune.common.seeding import stream
from tometune.config.data import Contamination, DataConfig, FiltersConfig, PoolOrder, ScorerKind, ranking
from tometune.data import draw
from tometune.data.contamination import EvaluationTexts, overlapping_rows
from tometune.data.filters import NEAR, Filtered, Mask, Tokenizer, apply_masks, by_source, examples_of, filters
from tometune.data.near_duplicates import near_duplicates
from tometune.data.standardise import KINDS, Standardised, check_malformed, standardise

CONTAMINATED = "contaminated"
COLUMNS = ["source", "messages", "extras"]  # of a mix
MOST_HELD_OUT = 200  # rows, if their number is not set


@dataclass(frozen=True)
class Part:
    """The rows that a mix takes from its base or pool."""

    source: Standardised
    chosen: np.ndarray  # row numbers in the order of the mix
    facts: dict[str, Any]  # counts of rows read, dropped, fixed, filtered and excluded
    examples: dict[str, list[dict[str, Any]]]  # a few dropped rows, as in `Filtered`
    held_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # rows set aside for scoring


@dataclass(frozen=True)
class Mix:
    """Exactly the configured number of conversations, in a fixed order."""

    name: str
    seed: int
    dataset: Dataset  # columns `source`, `messages` ([{role, content}]) and `extras`; rows as in `row_ids`
    row_ids: list[str]  # `base:<key>` or `pool:<key>`: the 128-bit hash of the normalised text in hex
    digest: str  # sha256 over the row ids in order, 20 hex digits
    sources: dict[str, int]  # rows by source, largest first
    parts: dict[str, Part]  # `base` and, if rows are drawn, `pool`
    scores: np.ndarray | None = None  # (rows,) float32, NaN for rows without one; None if no row has one
    # Rows set aside for scoring, as in `rows`; also those of a pool from which the mix draws nothing.
    held_out: dict[str, tuple[Standardised, np.ndarray]] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        return {origin: part.facts for origin, part in self.parts.items()}

    @property
    def rows(self) -> dict[str, tuple[Standardised, np.ndarray]]:
        """The source and the numbers of the rows that the mix takes, by origin."""
        return {origin: (part.source, part.chosen) for origin, part in self.parts.items()}

    def manifest(self) -> dict[str, Any]:
        """Return the content of mix.json: everything but the texts."""
        counts: dict[str, Any] = {"rows": len(self.row_ids), "sources": self.sources, **self.facts}
        if self.held_out:
            counts["held_out"] = {name: _row_ids(name, of.keys[rows]) for name, (of, rows) in self.held_out.items()}
        return {"name": self.name, "seed": self.seed, "digest": self.digest, **counts, "row_ids": self.row_ids}


def build_mix(
    config: DataConfig,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer | None = None,
    texts: EvaluationTexts | None = None,
    scorer: draw.Scorer | None = None,
) -> Mix:
    """Build a mix; the same config, inputs and seed (`seeds.data`) give the same rows on any machine.

    The cache keeps standardised sources and everything computed from their rows. A tokenizer is needed by filters that
    count tokens, the texts of the evaluation by `data.contamination=drop`, and the scorer, which ranks the pool, if
    `ranking(config)` is `fineweb_edu` or `ifd`.

    Raises:
        UserError: a source cannot be read or has too few usable rows; says how many there were.
    """
    builder = _Builder(config, seed, cache, tokenizer, texts, scorer)
    base = builder.select_base()
    parts, added = {"base": base}, builder.added(base)
    if added != 0 or (len(base.held_out) and config.held_out.pool and config.pool is not None):
        parts["pool"] = builder.select_pool(added, base)
    held_out = {origin: (part.source, part.held_out) for origin, part in parts.items() if len(part.held_out)}
    if added == 0:
        parts.pop("pool", None)
    row_ids, sources, rows = list[str](), Counter[str](), []
    for origin, part in parts.items():
        row_ids += _row_ids(origin, part.source.keys[part.chosen])
        sources.update(by_source(part.source, part.chosen))
        rows.append(part.source.rows.select_columns(COLUMNS).select(part.chosen))
    return Mix(
        name=config.name,
        seed=seed,
        dataset=concatenate_datasets(rows),
        row_ids=row_ids,
        digest=sha256("\n".join(row_ids).encode()).hexdigest()[:20],
        sources=dict(sources.most_common()),
        parts=parts,
        scores=_scores(config, parts, scorer, cache),
        held_out=held_out,
    )


def _row_ids(origin: str, keys: np.ndarray) -> list[str]:
    """Return row ids from keys; the second of two base rows with the same text ends in `-2`."""
    seen: Counter[str] = Counter()
    ids = []
    for key in np.frombuffer(keys.tobytes().hex().encode(), dtype="S32").astype(str).tolist():
        seen[key] += 1
        ids.append(f"{origin}:{key}" if seen[key] == 1 else f"{origin}:{key}-{seen[key]}")
    return ids


def _scores(config: DataConfig, parts: dict[str, Part], scorer: draw.Scorer | None, cache: Path) -> np.ndarray | None:
    """Return the scores that rank the pool, or the ones that the rows came with if it is not ranked.

    A model runs only on the pool, because it decides nothing about base rows, whose own scores have another scale.
    """
    kind = (ranking(config) if "pool" in parts else None) or ScorerKind.column
    by_model = kind in (ScorerKind.fineweb_edu, PoolOrder.ifd)
    found = []
    for origin, part in parts.items():
        scores = part.source.scores
        if by_model and origin == "base":
            scores = None
        elif kind != ScorerKind.column:
            scores = draw.scores_of(part.source, kind, scorer, cache)
        found.append(np.full(len(part.chosen), np.nan, np.float32) if scores is None else scores[part.chosen])
    joined: np.ndarray = np.concatenate(found)
    joined[np.isinf(joined)] = np.nan  # an infinite score has no mean
    return None if np.isnan(joined).all() else joined


@dataclass(frozen=True)
class _Builder:
    """Selects the rows of base and pool; the fields are those of `build_mix`."""

    config: DataConfig
    seed: int
    cache: Path
    tokenizer: Tokenizer | None
    texts: EvaluationTexts | None
    scorer: draw.Scorer | None

    def select_base(self) -> Part:
        """Take the whole base in key order, or a draw of `data.base.rows` rows."""
        config, threshold = self.config, self.config.near_dedup.threshold
        base = standardise(config.base, "data.base", self.cache)
        check_malformed(base, "data.base", config)
        near = config.near_dedup.base and threshold is not None
        active = config.filters if config.filters.base else FiltersConfig()
        filtered, facts = self._filter(base, active, [self._near_mask(base)] if near else [])
        order = draw.in_key_order(base, self.cache)
        rows = order[filtered.keep[order]]
        most = len(rows) if config.rows is None else config.rows
        wanted = min(len(rows), most) if config.base.rows is None else config.base.rows
        draw.check_base(base, len(rows), facts, wanted, config)
        held_out = self._hold_out("base", base, rows, config.held_out.rows)
        if len(held_out):
            whole = len(rows) if config.base.rows is None else wanted
            rows = rows[~np.isin(base.keys[rows], base.keys[held_out])]
            if threshold is not None:
                rows = rows[~near_duplicates((base, held_out), (base, rows), threshold, self.cache)[1]]
            # Repeats are missing as well if the mix takes all other rows.
            facts["held_out"] = max(len(held_out), whole - len(rows))
            wanted = min(wanted, len(rows)) if config.base.rows is None else wanted - facts["held_out"]
            if wanted <= 0:
                left = f"data.held_out.rows={len(held_out)}: leaves no row of the base for data.rows={most}"
                raise UserError(f"{left}; hold out fewer rows, or {'raise data.rows' if config.rows else 'add rows'}")
        chosen = rows[stream(self.seed, "base").permutation(len(rows))[:wanted]] if len(rows) > wanted else rows
        facts["rows"] = wanted
        if near:
            facts[NEAR] = facts["filtered"].pop(NEAR)
        return Part(base, chosen, facts, filtered.examples, held_out)

    def added(self, base: Part) -> int | None:
        """Return how many rows are drawn from the pool; None for all."""
        config = self.config
        if config.rows is None:
            return config.pool.add if config.pool is not None and config.draws else 0
        held_out: int = base.facts.get("held_out", 0)
        return max(0, config.rows - len(base.chosen) - held_out)

    def select_pool(self, added: int | None, base_part: Part) -> Part:
        """Draw `added` rows from the pool, or all."""
        config, cache, base = self.config, self.cache, base_part.source
        if added != 0:
            draw.check_pool(config, added or 0)
        assert config.pool is not None
        pool = standardise(config.pool, "data.pool", cache)
        check_malformed(pool, "data.pool", config)
        draw.check_sources(pool, config.pool)
        filtered, facts = self._filter(pool, config.filters)
        kind = ranking(config)
        scores = draw.scores_of(pool, kind, self.scorer, cache) if kind else None
        order = draw.in_key_order(pool, cache)
        usable = order[filtered.keep[order]]
        rows, excluded = draw.eligible(pool, usable, base, scores)
        if scores is not None:  # the best first, in this order they are also drawn
            rows = rows[np.argsort(-scores[rows], kind="stable")]
        facts["excluded"] = {reason: len(numbers) for reason, numbers in excluded.items()}
        facts["excluded_sources"] = {reason: by_source(pool, numbers) for reason, numbers in excluded.items()}
        threshold, compared = config.near_dedup.threshold, self._one_row_per_text(base)
        if threshold is not None and config.near_dedup.base:
            compared = compared[self._near_mask(base)[1][compared]]
        held_out = rows[:0]
        if config.held_out.pool and len(base_part.held_out):
            candidates, _ = draw.eligible(pool, usable, base, None)  # the same ones whatever ranks the pool
            if threshold is not None:
                candidates = candidates[~near_duplicates((base, compared), (pool, candidates), threshold, cache)[0]]
            held_out = self._hold_out("pool", pool, candidates, len(base_part.held_out))
            rows = rows[~np.isin(pool.keys[rows], pool.keys[held_out])]
            facts["held_out"] = len(held_out)
        facts |= {"eligible": len(rows), "rows": added}
        if threshold is not None:
            both = np.concatenate([held_out, rows])  # held-out rows first, so that they are the ones that stay
            near, near_base = (
                found[len(held_out) :] for found in near_duplicates((base, compared), (pool, both), threshold, cache)
            )
            facts |= {NEAR: by_source(pool, rows[near]), "near_base": by_source(pool, rows[near_base])}
            filtered.examples[NEAR] = examples_of(pool, rows[near])
            rows = rows[~near]
            facts["eligible"] = len(rows)
        ordered = rows if kind else rows[stream(self.seed, "data").permutation(len(rows))]
        if added is None:
            added = len(draw.take(ordered, len(ordered), pool, config.pool)[0])
        facts["rows"] = added
        chosen, reason = draw.take(ordered, added, pool, config.pool) if added else (ordered[:0], "")
        if len(chosen) < added:
            raise draw.shortage_error(pool, facts, len(chosen), reason, config)
        return Part(pool, chosen, facts, filtered.examples, held_out)

    def _hold_out(self, origin: str, source: Standardised, rows: np.ndarray, number: int | None) -> np.ndarray:
        """Return the numbers of `number` rows of different texts, see `data.held_out.rows`; `rows` are in key order.

        Rows with tools, reasoning or untrained answers are not held out, because a task cannot ask for them.
        """
        texts = rows[draw.starts_group(source.keys[rows])]
        if number is None and not (number := min(MOST_HELD_OUT, len(texts) // 10)):
            few = f"data.{origin}: has {len(texts)} different rows, too few to hold out a tenth for scoring"
            raise UserError(f"{few}; add rows, or name a test set: eval=own eval.path=FILE")
        order = stream(self.config.held_out.seed, f"held out {origin}").permutation(len(texts))

        def plain(row: int) -> bool:
            found = source.rows[row]
            return found["extras"] is None and all(turn["role"] != "tool" for turn in found["messages"])

        held_out = np.array(list(islice(filter(plain, texts[order].tolist()), number)), dtype=rows.dtype)
        if len(held_out) < number:
            most = len(held_out) - (origin == "base" and len(held_out) == len(rows))  # a row is left to train on
            has = f"data.{origin} has {len(held_out):,} different rows that can be held out (without tools, reasoning)"
            raise UserError(f"data.held_out.rows={number}: {has}; set data.held_out.rows={most} or less")
        return held_out

    def _filter(
        self, source: Standardised, config: FiltersConfig, masks: Iterable[Mask] = ()
    ) -> tuple[Filtered, dict[str, Any]]:
        """Apply filters, then other masks, then that of contamination if those rows are to be dropped.

        Returns:
            The rows that are left, and the counts of standardising and filtering for the manifest. Contamination adds
            `contaminated`, all such rows by task and source, and `contaminated_rows`, of the rows that were left.
        """
        masks = chain(filters(config, source, self.cache, self.tokenizer), masks)
        by_task: dict[str, dict[str, int]] | None = None
        if self.config.contamination is Contamination.drop:
            assert self.texts is not None, "data.contamination=drop needs the evaluation texts"
            contaminated, by_task = overlapping_rows(source, self.texts, self.cache)
            masks = chain(masks, [(CONTAMINATED, ~contaminated)])
        filtered = apply_masks(source, masks)
        counts = {"read": source.read, "usable": len(source.rows), **{kind: getattr(source, kind) for kind in KINDS}}
        facts: dict[str, Any] = {"fingerprint": source.fingerprint, **counts, "filtered": dict(filtered.counts)}
        if by_task is not None:
            facts["contaminated"] = by_task
            facts["contaminated_rows"] = sum(facts["filtered"].pop(CONTAMINATED).values())
        return filtered, facts

    def _near_mask(self, base: Standardised) -> Mask:
        """Return the mask of base rows that are not near-duplicates; rows with the same text are not compared."""
        assert self.config.near_dedup.threshold is not None
        rows = self._one_row_per_text(base)
        near, _ = near_duplicates((base, rows[:0]), (base, rows), self.config.near_dedup.threshold, self.cache)
        keep = np.ones(len(base.rows), dtype=bool)
        keep[rows[near]] = False
        return NEAR, keep

    def _one_row_per_text(self, source: Standardised) -> np.ndarray:
        order = draw.in_key_order(source, self.cache)
        return np.asarray(order[draw.starts_group(source.keys[order])])
