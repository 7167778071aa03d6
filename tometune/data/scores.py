"""Quality scores: the number per row by which `data.pool.order=best` ranks the pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import ScorerConfig, ScorerKind
from tometune.data.draw import in_key_order
from tometune.data.features import feature
from tometune.data.standardise import Standardised

VERSION = 2
"""Raised when the scorer gets other texts, or other texts together, and so gives other scores."""

STEP = 2_000
"""Rows that the scorer gets at once."""


class Scorer(Protocol):
    """A model that scores texts."""

    @property
    def fingerprint(self) -> str:
        """What identifies the model."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the score of each text, float32; higher is better."""


def scores_of(source: Standardised, config: ScorerConfig, scorer: Scorer | None, cache: Path) -> np.ndarray:
    """Return the score of every row, shape (rows), float32; higher is better.

    Args:
        source: standardised rows of the pool.
        config: the kind of score.
        scorer: the model, if the kind needs one.
        cache: root of the cache, which keeps the scores of a model.

    Raises:
        UserError: the rows have no score of their own, or the model is missing.
    """
    if config.kind is ScorerKind.heuristic:
        return feature(source, "heuristic", cache)
    if config.kind is ScorerKind.column:
        if source.scores is None:
            raise UserError(
                "data.scorer.kind=column: no row of the pool has a score; name its column by data.pool.score=…, or set "
                "data.scorer.kind=heuristic"
            )
        return np.where(np.isnan(source.scores), np.float32(-np.inf), source.scores)
    if scorer is None:
        raise ValueError(f"data.scorer.kind={config.kind} needs a scorer")
    made_by = scorer

    def build(folder: Path) -> None:
        scores = np.empty(len(source.rows), dtype=np.float32)
        rows = in_key_order(source, cache)  # which texts come together does not depend on the files
        with progress("rows scored", len(rows)) as advance:
            for start in range(0, len(rows), STEP):
                numbers = rows[start : start + STEP]
                conversations = source.rows.select_columns("messages")[numbers]["messages"]
                scores[numbers] = made_by(["\n\n".join(turn["content"] for turn in turns) for turns in conversations])
                advance(len(numbers))
        np.save(folder / "values.npy", scores)

    key = {"source": source.fingerprint, "classifier": made_by.fingerprint, "version": VERSION}
    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values
