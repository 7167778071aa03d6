"""Scorers: a number a row by which `data.pool.order=best` ranks the pool; worked out once and cached."""

import logging
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tometune.caching import cached_folder
from tometune.config.errors import UserError
from tometune.config.filters import ScorerConfig, ScorerKind
from tometune.data.clean.features import feature, slices, turns_of
from tometune.data.sources import content_digest
from tometune.data.standardise import Standardised
from tometune.hub import hub_errors, pinned
from tometune.progress import progress

log = logging.getLogger(__name__)

VERSION = 1
"""Raised when the classifier is shown other texts, and so gives other scores."""

BATCH = 64
"""Rows that the classifier is shown at once."""

LONGEST = 512
"""Tokens of a row that the classifier reads."""

STEP = 2_000
"""Rows that are sorted by length before they are put in batches."""


def scores_of(source: Standardised, config: ScorerConfig, cache: Path) -> np.ndarray:
    """Return the score of every row, shape (rows), float32; higher is better.

    Args:
        source: standardised rows of the pool.
        config: which scorer.
        cache: root of the cache.

    Raises:
        UserError: the rows have no score of their own, or the classifier cannot be had.
    """
    if config.kind is ScorerKind.column:
        if source.scores is None:
            raise UserError(
                "data.scorer.kind=column: no row of the pool has a score; name its column by data.pool.score=…, or set "
                "data.scorer.kind=heuristic"
            )
        return np.where(np.isnan(source.scores), np.float32(-np.inf), source.scores)
    if config.kind is ScorerKind.heuristic:
        return feature(source, "heuristic", cache)
    return _classified(source, config, cache)


def fingerprint(config: ScorerConfig) -> str:
    """Return what identifies a scorer: its kind, and of a classifier the commit, or the content of its folder.

    Raises:
        UserError: the classifier cannot be had.
    """
    if config.kind is not ScorerKind.fineweb_edu:
        return str(config.kind)
    name, revision = _where(config)
    if revision is not None:
        return f"{name}@{revision}"
    files = sorted(file for file in Path(name).iterdir() if file.is_file())
    return sha256(b"".join(file.name.encode() + content_digest(file) for file in files)).hexdigest()[:20]


def _where(config: ScorerConfig) -> tuple[str, str | None]:
    """Return a folder and no revision, or a hub id and the commit."""
    folder = Path(config.id).expanduser()
    if folder.is_dir():
        return str(folder), None
    return config.id, pinned("data.scorer.id", config.id, config.revision, "model")


def _classified(source: Standardised, config: ScorerConfig, cache: Path) -> np.ndarray:
    """Return the scores of a sequence classifier."""
    made_by = fingerprint(config)
    key = {"source": source.fingerprint, "classifier": made_by, "version": VERSION}

    def build(folder: Path) -> None:
        np.save(folder / "values.npy", _classify(source, *_where(config)))

    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values


def _classify(source: Standardised, name: str, revision: str | None) -> np.ndarray:
    """Show every row to the classifier, rows of like length together."""
    import torch

    tokenizer, model = _load(name, revision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        log.warning("data.scorer: %s rows are classified without a GPU, which takes long", f"{len(source.rows):,}")
    model = model.to(device).eval()
    scores = np.empty(len(source.rows), dtype=np.float32)
    with torch.inference_mode(), progress("rows scored", len(source.rows)) as advance:
        for start in range(0, len(source.rows), STEP):
            batches = slices(source.folder / "rows.arrow", start, start + STEP)
            texts = [text for batch in batches for text in _texts(batch)]
            order = np.argsort([len(text) for text in texts], kind="stable")
            for first in range(0, len(order), BATCH):
                rows = order[first : first + BATCH]
                shown = tokenizer(
                    [texts[row] for row in rows], return_tensors="pt", padding=True, truncation=True, max_length=LONGEST
                )
                scores[start + rows] = model(**shown.to(device)).logits[:, -1].float().cpu().numpy()
            advance(len(texts))
    return scores


def _texts(batch: Any) -> list[str]:
    """Return the texts of each row's turns, one below the other."""
    rows, _, texts = turns_of(batch)
    edges = np.searchsorted(rows, np.arange(len(batch) + 1)).tolist()
    said = texts.to_pylist()
    return ["\n\n".join(said[start:end]) for start, end in pairwise(edges)]


def _load(name: str, revision: str | None) -> tuple[Any, Any]:
    """Load a classifier with one output."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with hub_errors("data.scorer.id", name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, use_safetensors=True)
    if model.config.num_labels != 1:
        raise UserError(
            f"data.scorer.id={name}: has {model.config.num_labels} outputs; name a classifier with one score"
        )
    return tokenizer, model
