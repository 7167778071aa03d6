"""Scorers: a number a row by which `data.pool.order=best` ranks the pool; worked out once and cached."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.hub import hub_errors, pinned
from tometune.common.progress import progress
from tometune.config.data import ScorerConfig, ScorerKind
from tometune.data.draw import in_key_order
from tometune.data.features import feature
from tometune.data.sources import content_digest
from tometune.data.standardise import Standardised

log = logging.getLogger(__name__)

VERSION = 2
"""Raised when the classifier is shown other texts, or other texts together, and so gives other scores."""

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
        np.save(folder / "values.npy", _classify(source, in_key_order(source, cache), *_where(config)))

    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values


def _classify(source: Standardised, rows: np.ndarray, name: str, revision: str | None) -> np.ndarray:
    """Show every row to the classifier, rows of like length together.

    Which rows are together, and so padded to one length, can change the last digits: it goes by the order of `rows`,
    which is that of no file.
    """
    import torch

    tokenizer, model = _load(name, revision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        log.warning("data.scorer: %s rows are classified without a GPU, which takes long", f"{len(source.rows):,}")
    model = model.to(device).eval()
    scores = np.empty(len(source.rows), dtype=np.float32)
    with torch.inference_mode(), progress("rows scored", len(source.rows)) as advance:
        for start in range(0, len(source.rows), STEP):
            numbers = rows[start : start + STEP]
            texts = _texts(source, numbers)
            order = np.argsort([len(text) for text in texts], kind="stable")
            for first in range(0, len(order), BATCH):
                some = order[first : first + BATCH]
                shown = tokenizer(
                    [texts[row] for row in some], return_tensors="pt", padding=True, truncation=True, max_length=LONGEST
                )
                scores[numbers[some]] = model(**shown.to(device)).logits[:, -1].float().cpu().numpy()
            advance(len(texts))
    return scores


def _texts(source: Standardised, numbers: np.ndarray) -> list[str]:
    """Return the texts of the turns of some rows, one below the other."""
    taken = source.rows.select_columns("messages")[numbers]
    return ["\n\n".join(turn["content"] for turn in messages) for messages in taken["messages"]]


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
