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
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, PoolOrder
from tometune.config.filters import ScorerKind
from tometune.data.clean.masks import Tokenizer, by_source
from tometune.data.contamination.overlaps import HeldOut
from tometune.data.taken import Taken, hexadecimal, of_base, of_pool
from tometune.data.tokenised import Part
from tometune.models.quality_scorer import scores_of


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
