"""Models that rank the pool of a mix: a quality classifier, e.g. fineweb-edu's, and the base model's own losses."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors, pinned
from tometune.config.data import ScorerConfig, ScorerKind
from tometune.models.machine import resolve_precision
from tometune.models.source import ModelSource, fingerprint

log = logging.getLogger(__name__)

TEXTS_AT_ONCE = 64  # that the classifier reads
TEXT_TOKENS = 512  # of a text that the classifier reads

IFD_VERSION = 1  # raised when the same rows get other scores
ANSWER_TOKENS = 512  # of the prompt, from its end, and of the answer, from its start
BATCH_TOKENS = 4_096  # of a forward pass, with padding

Ids = list[int]


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


@dataclass(frozen=True)
class IfdScorer:
    """Instruction-following difficulty: how little a prompt helps the base model to predict the first answer.

    The score (Li et al. 2023, arXiv:2308.12032) is the model's mean loss on the answer given the prompt, divided by
    that on the answer alone. At 1 or above the prompt does not help, which the authors take for a sign that answer and
    prompt do not match. Such a row gets the negative ratio, so it ranks below all others. The model is loaded at the
    first call.
    """

    source: ModelSource
    tokenizer: Any

    @property
    def fingerprint(self) -> str:
        model, template = self.source.config, sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
        loaded = f"{fingerprint(model)} {model.quantization} {resolve_precision(model.precision)}"
        return f"ifd-{IFD_VERSION} {loaded} {template}"

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Return the score of each conversation, float32; -inf if there is no answer to a prompt."""
        scores = np.full(len(conversations), -np.inf, dtype=np.float32)
        texts = {number: pair for number, turns in enumerate(conversations) if (pair := self._texts(turns))}
        if not texts:
            return scores
        # All at once, because the tokenizer then works in several threads.
        prompts, answers = (
            self.tokenizer(list(side), add_special_tokens=False)["input_ids"]
            for side in zip(*texts.values(), strict=True)
        )
        found = {
            number: (prompt[-ANSWER_TOKENS:], answer[:ANSWER_TOKENS])
            for number, prompt, answer in zip(texts, prompts, answers, strict=True)
            if answer
        }
        start = self.tokenizer.bos_token_id
        alone = [start if start is not None else self.tokenizer.eos_token_id]
        given = self._losses([(prompt, answer) for prompt, answer in found.values()])
        direct = self._losses([(alone, answer) for _, answer in found.values()])
        ratios = given / np.maximum(direct, 1e-6)
        scores[list(found)] = np.where(ratios < 1, ratios, -ratios)
        return scores

    def _texts(self, turns: Sequence[dict[str, str]]) -> tuple[str, str] | None:
        """Return the prompt as text and the first answer; None if the chat template has no such prompt."""
        first = next((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), 0)
        if not first:
            return None
        try:
            prompt = self.tokenizer.apply_chat_template(list(turns[:first]), add_generation_prompt=True, tokenize=False)
        except TemplateError:
            return None
        return str(prompt), turns[first]["content"]

    def _losses(self, pairs: Sequence[tuple[Ids, Ids]]) -> np.ndarray:
        """Return the mean loss per token of each answer after its context, in nats; long pairs come first."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        losses = np.empty(len(pairs))
        lengths = [len(context) + len(answer) for context, answer in pairs]
        order = sorted(range(len(pairs)), key=lambda number: -lengths[number])
        with torch.inference_mode():
            while order:
                size = max(1, BATCH_TOKENS // lengths[order[0]])
                batch, order = order[:size], order[size:]
                rows = [torch.tensor([*pairs[number][0], *pairs[number][1]]) for number in batch]
                ids = pad_sequence(rows, batch_first=True).to(self._model.device)
                mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(ids.device)
                logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                found = []
                for row, number in enumerate(batch):
                    begin, end = len(pairs[number][0]), lengths[number]
                    predicted = logits[row, begin - 1 : end - 1].float()
                    found.append(torch.nn.functional.cross_entropy(predicted, ids[row, begin:end]))
                losses[batch] = torch.stack(found).cpu().numpy()  # one wait for the device per batch
        return losses

    @cached_property
    def _model(self) -> Any:
        from tometune.models.base_models import base_models
        from tometune.models.load import load_model

        base_models.drop()  # two would not fit
        return load_model(self.source)
