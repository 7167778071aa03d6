"""A model that ranks the pool of a mix: a quality classifier, e.g. fineweb-edu's."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors, pinned
from tometune.config.data import ScorerConfig, ScorerKind

log = logging.getLogger(__name__)

TEXTS_AT_ONCE = 64  # that the classifier reads
TEXT_TOKENS = 512  # of a text that the classifier reads


def quality_scorer(config: ScorerConfig) -> "QualityScorer | None":
    """Return the classifier that a config names, or None if its scores need no model. Nothing is loaded yet."""
    return QualityScorer(config, scorer_fingerprint(config)) if config.kind is ScorerKind.fineweb_edu else None


def scorer_fingerprint(config: ScorerConfig) -> str:
    """Return what identifies a scorer: its kind, or the commit or content of the classifier.

    Raises:
        UserError: the classifier is missing or cannot be read.
    """
    if config.kind is not ScorerKind.fineweb_edu:
        return str(config.kind)
    name, revision = _locate(config)
    if revision is not None:
        return f"{name}@{revision}"
    digest = sha256()
    try:
        for path in sorted(path for path in Path(name).iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(path.name.encode() + file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"data.scorer.id={name}: cannot be read ({error}); check its permissions") from error
    return digest.hexdigest()[:20]


def _locate(config: ScorerConfig) -> tuple[str, str | None]:
    """Return a folder and no revision, or a hub id and the commit."""
    folder = Path(config.id).expanduser()
    if folder.is_dir():
        return str(folder), None
    return config.id, pinned("data.scorer.id", config.id, config.revision, "model")


@dataclass(frozen=True)
class QualityScorer:
    """A sequence classifier with one output, loaded when it is first called."""

    config: ScorerConfig
    fingerprint: str

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Return the score of each conversation's text, float32; higher is better.

        Texts of similar length share a batch. They are padded to one length, which can change the last digits, so the
        same texts must come together to get the same scores.

        Raises:
            UserError: the classifier is missing, or it has several outputs.
        """
        import torch

        tokenizer, model = self._loaded
        texts = ["\n\n".join(turn["content"] for turn in turns) for turns in conversations]
        scores = np.empty(len(texts), dtype=np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), TEXTS_AT_ONCE):
                batch = order[start : start + TEXTS_AT_ONCE]
                options = {"padding": True, "truncation": True, "max_length": TEXT_TOKENS, "return_tensors": "pt"}
                inputs = tokenizer([texts[index] for index in batch], **options)
                scores[batch] = model(**inputs.to(model.device)).logits[:, -1].float().cpu().numpy()
        return scores

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        name, revision = _locate(self.config)
        with hub_errors("data.scorer.id", name):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, use_safetensors=True)
        if model.config.num_labels != 1:
            raise UserError(
                f"data.scorer.id={name}: has {model.config.num_labels} outputs; name a classifier with one score"
            )
        if not torch.cuda.is_available():
            log.warning("data.scorer: no GPU found; scoring the pool takes long")
        return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
