"""Filters: for each reason to drop rows, the mask of the rows that stay, and counts of the others by source."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import FiltersConfig
from tometune.data.encoder import without_truncation
from tometune.data.features import cached_array, feature, slices, sum_turns, turns_of
from tometune.data.standardise import Counts, Standardised

Tokenizer = Callable[[], Any]  # loads the model's tokenizer; called only if a filter counts tokens
Mask = tuple[str, np.ndarray]  # a reason to drop rows, e.g. `too_many_turns`, and which rows stay: (rows,) bool

NEAR = "near_duplicates"  # the reason for near-duplicates
EXAMPLES = 5  # dropped rows that are kept as examples of each reason


@dataclass(frozen=True)
class Filtered:
    """The rows of a source that pass every mask."""

    keep: np.ndarray  # (rows,) bool
    counts: Counts  # dropped rows; each counts under the first reason that applies
    examples: dict[str, list[dict[str, Any]]]  # up to `EXAMPLES` dropped rows by reason: {source, messages}


def apply_masks(source: Standardised, masks: Iterable[Mask]) -> Filtered:
    """Apply masks in order."""
    keep = np.ones(len(source.rows), dtype=bool)
    counts, examples = {}, {}
    for reason, stays in masks:
        dropped = np.flatnonzero(keep & ~stays)
        counts[reason] = by_source(source, dropped)
        examples[reason] = examples_of(source, dropped)
        keep &= stays
    return Filtered(keep, counts, examples)


def by_source(source: Standardised, rows: np.ndarray) -> dict[str, int]:
    """Count rows by source, largest first."""
    counts = np.bincount(source.labels[rows], minlength=len(source.names)).tolist()
    named = {name: count for name, count in zip(source.names, counts, strict=True) if count}
    return dict(sorted(named.items(), key=lambda entry: -entry[1]))


def examples_of(source: Standardised, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return the rows with the lowest keys, which are the same for any order of files."""
    lowest = rows[np.argsort(source.keys[rows], kind="stable")[:EXAMPLES]]
    found: list[dict[str, Any]] = source.rows.select_columns(["source", "messages"]).select(lowest).to_list()
    return found


def filters(config: FiltersConfig, source: Standardised, cache: Path, tokenizer: Tokenizer | None) -> Iterator[Mask]:
    """Yield the mask of each filter that is on; features of the rows are cached.

    Raises:
        UserError: the config has a minimum score and no row has a score.
    """
    limits = {
        "characters": (config.min_characters, config.max_characters),
        "turns": (config.min_turns, config.max_turns),
        "tokens": (config.min_tokens, config.max_tokens),
    }
    for unit, (low, high) in limits.items():
        for word, limit, passes in (("few", low, np.greater_equal), ("many", high, np.less_equal)):
            if limit is not None:
                sizes = _token_counts(source, cache, tokenizer) if unit == "tokens" else feature(source, unit, cache)
                yield f"too_{word}_{unit}", passes(sizes, limit)
    if config.min_score is not None:
        if source.scores is None:
            none = f"none of the {len(source.rows):,} rows from {', '.join(source.names[:3])} has a score"
            fix = "name its column with data.pool.score=… or data.base.score=…"
            raise UserError(f"data.filters.min_score={config.min_score}: {none}; {fix}")
        yield "score_too_low", source.scores >= config.min_score  # drops NaN, a row without a score
    for on, name in ((config.refusals, "refusal"), (config.broken_code, "broken_code")):
        if on:
            yield name, ~feature(source, name, cache)
    if config.max_repetition is not None:
        yield "repetition", feature(source, "repetition", cache) <= config.max_repetition
    if config.languages:
        kept = np.array([b"", *(code.encode() for code in config.languages)])
        yield "language", np.isin(feature(source, "language", cache), kept)


def _token_counts(source: Standardised, cache: Path, tokenizer: Tokenizer | None) -> np.ndarray:
    """Return the tokens of each row's texts, without the template's."""
    assert tokenizer is not None, "a filter that counts tokens needs a tokenizer"
    backend = without_truncation(tokenizer().backend_tokenizer)

    def build() -> np.ndarray:
        counts = [np.empty(0, np.int64)]
        with progress("tokens of rows counted", len(source.rows)) as advance:
            for batch in slices(source.folder / "rows.arrow", 0, len(source.rows)):
                turns = backend.encode_batch_fast(turns_of(batch)[2].to_pylist(), add_special_tokens=False)
                counts.append(sum_turns(batch, list(map(len, turns))))
                advance(len(batch))
        return np.concatenate(counts)

    made_by = sha256(backend.to_str().encode()).hexdigest()[:20]
    key = {"source": source.fingerprint, "feature": "tokens", "tokenizer": made_by}
    return cached_array(cache, "features", key, build)
