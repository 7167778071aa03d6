"""Masks: for each reason to leave rows out, which rows of a source it leaves in; and what was left out, by source."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import FiltersConfig
from tometune.data.encoder import settled
from tometune.data.features import STEP, feature, slices, turns_of
from tometune.data.standardise import Standardised

Tokenizer = Callable[[], Any]
"""Loads the model's tokenizer; called only where tokens are asked for."""

NEAR = "near_duplicates"
"""The reason of what is nearly another row."""

EXAMPLES = 5
"""Dropped rows that are kept as examples of a reason."""


@dataclass(frozen=True)
class Mask:
    """One reason to leave rows out."""

    reason: str
    """What is wrong with what it leaves out, e.g. `too_many_turns`."""

    keep: np.ndarray
    """Shape (rows), bool."""


@dataclass(frozen=True)
class Filtered:
    """What is left of a source."""

    keep: np.ndarray
    """Shape (rows), bool: the rows that every mask leaves in."""

    counts: dict[str, dict[str, int]]
    """Rows left out by reason, by source; a row counts under the first reason that leaves it out."""

    examples: dict[str, list[dict[str, Any]]]
    """Up to `EXAMPLES` rows by reason, each with origin, source and messages."""


def together(source: Standardised, origin: str, masks: Iterable[Mask]) -> Filtered:
    """Put masks together, in their order.

    Args:
        source: the rows.
        origin: `base` or `pool`.
        masks: each over the rows of the source.
    """
    keep = np.ones(len(source.rows), dtype=bool)
    counts, examples = {}, {}
    for mask in masks:
        out = np.flatnonzero(keep & ~mask.keep)
        counts[mask.reason] = by_source(source, out)
        examples[mask.reason] = examples_of(source, origin, out)
        keep &= mask.keep
    return Filtered(keep, counts, examples)


def by_source(source: Standardised, rows: np.ndarray) -> dict[str, int]:
    """Count rows by where they are from, most first."""
    counts = np.bincount(source.labels[rows], minlength=len(source.names)).tolist()
    named = {name: count for name, count in zip(source.names, counts, strict=True) if count}
    return dict(sorted(named.items(), key=lambda entry: -entry[1]))


def examples_of(source: Standardised, origin: str, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return some of these rows: those of the lowest keys, which are the same in any order of files."""
    order = np.lexsort((source.keys[rows, 1], source.keys[rows, 0]))[:EXAMPLES]
    return [
        {"origin": origin, "source": row["source"], "messages": row["messages"]}
        for row in (source.rows[int(number)] for number in rows[order])
    ]


def filters(config: FiltersConfig, source: Standardised, cache: Path, tokenizer: Tokenizer | None) -> Iterator[Mask]:
    """Yield a mask for each filter that is on.

    Args:
        config: the filters.
        source: standardised rows.
        cache: root of the cache, for what is worked out of each row.
        tokenizer: of the model.

    Raises:
        UserError: a score is asked for and no row has one.
    """
    limits = {
        "characters": (config.min_characters, config.max_characters),
        "turns": (config.min_turns, config.max_turns),
        "tokens": (config.min_tokens, config.max_tokens),
    }
    for unit, (low, high) in limits.items():
        if low is not None or high is not None:
            sizes = _tokens(source, cache, tokenizer) if unit == "tokens" else feature(source, unit, cache)
            yield from _within(sizes, unit, low, high)
    if config.min_score is not None:
        yield _score(config.min_score, source)
    for on, name in ((config.refusals, "refusal"), (config.broken_code, "broken_code")):
        if on:
            yield Mask(name, ~feature(source, name, cache))
    if config.max_repetition is not None:
        yield Mask("repetition", feature(source, "repetition", cache) <= config.max_repetition)
    if config.languages:
        found = feature(source, "language", cache)
        yield Mask("language", np.isin(found, np.array([b"", *(code.encode() for code in config.languages)])))


def _within(sizes: np.ndarray, unit: str, low: int | None, high: int | None) -> Iterator[Mask]:
    """Yield the masks of a lower and an upper limit, where they are set."""
    if low is not None:
        yield Mask(f"too_few_{unit}", sizes >= low)
    if high is not None:
        yield Mask(f"too_many_{unit}", sizes <= high)


def _score(least: float, source: Standardised) -> Mask:
    """Return the mask of a lowest score; a row without one is left out."""
    if source.scores is None:
        rows = f"the {len(source.rows):,} rows from {', '.join(source.names[:3])}"
        raise UserError(
            f"data.filters.min_score={least}: none of {rows} has a score; name its column, data.pool.score=… or "
            "data.base.score=…, or set data.filters.min_score=null"
        )
    return Mask("score_too_low", source.scores >= least)  # NaN is not


def _tokens(source: Standardised, cache: Path, tokenizer: Tokenizer | None) -> np.ndarray:
    """Return the tokens of each row's texts, template left out."""
    if tokenizer is None:
        raise UserError("data.filters.min_tokens and max_tokens: no tokenizer here; use min_characters, max_characters")
    backend = settled(tokenizer().backend_tokenizer)
    made_by = sha256(backend.to_str().encode()).hexdigest()[:20]

    def build(folder: Path) -> None:
        counts = []
        with progress("tokens of rows counted", len(source.rows)) as advance:
            for start in range(0, len(source.rows), STEP):
                for batch in slices(source.folder / "rows.arrow", start, start + STEP):
                    rows, _, texts = turns_of(batch)
                    encoded = backend.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
                    sizes = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
                    counts.append(np.bincount(rows, weights=sizes, minlength=len(batch)).astype(np.int64))
                    advance(len(batch))
        np.save(folder / "values.npy", np.concatenate([*counts, np.empty(0, np.int64)]))

    key = {"source": source.fingerprint, "feature": "tokens", "tokenizer": made_by}
    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values
