"""Instruction-following difficulty: ranks the pool of a mix by the base model's own losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.data.draw import IFD_VERSION
from tometune.data.encoder import Encoder
from tometune.data.template import Rendered, Template
from tometune.evaluation.likelihood import PromptedReference, batches, reference_bits
from tometune.models.machine import resolve_precision
from tometune.models.source import ModelSource, fingerprint

TEXT_TOKENS = 512  # of the prompt, from its end, and of the answer, from its start
# Of a forward pass. Logits are limited by their bytes, so that a small vocabulary gets larger batches.
BATCH_TOKENS = {"cpu": 4_096, "cuda": 16_384}  # with padding
LOGITS_BYTES = 2 * 2**30  # counted in float32


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
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"  # batches differ, and so do the last digits in 16 bits
        model, template = self.source.config, sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
        loaded = f"{fingerprint(model)} {model.quantization} {resolve_precision(model.precision)}"
        return f"ifd-{IFD_VERSION} {loaded} {template} {device}"

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Return the score of each conversation, float32; -inf if there is no answer to a prompt."""
        scores = np.full(len(conversations), -np.inf, dtype=np.float32)
        asked = {number: pair for number, turns in enumerate(conversations) if (pair := self._asked(turns))}
        # All at once, because the tokenizer then works in several threads.
        prompts = self._encoder.encode([prompt for prompt, _ in asked.values()])
        answers = self._encoder.encode_texts([answer for _, answer in asked.values()])
        found = {
            number: (prompt[-TEXT_TOKENS:], answer[:TEXT_TOKENS])
            for number, (prompt, _), answer in zip(asked, prompts, answers, strict=True)
            if answer
        }
        start = self.tokenizer.bos_token_id
        alone = [start if start is not None else self.tokenizer.eos_token_id]
        given, direct = (
            self._losses([PromptedReference([*(prompt or alone), *answer], len(answer), 0) for prompt, answer in pairs])
            for pairs in (found.values(), [(alone, answer) for _, answer in found.values()])
        )
        ratios = given / np.maximum(direct, 1e-6)
        scores[list(found)] = np.where(ratios < 1, ratios, -ratios)
        return scores

    def _asked(self, turns: Sequence[dict[str, str]]) -> tuple[Rendered, str] | None:
        """Return the prompt and the first answer; None if the chat template has no such prompt."""
        first = next((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), 0)
        if not first:
            return None
        template = self._encoder.template
        try:
            return template.prompt(list(turns[:first])), turns[first]["content"]
        except UserError:
            return None

    def _losses(self, rows: Sequence[PromptedReference]) -> np.ndarray:
        """Return the mean loss per token of each answer after its context, in nats."""
        losses = np.empty(len(rows))
        if not rows:
            return losses
        logits = LOGITS_BYTES // (len(self.tokenizer) * 4)
        tokens = BATCH_TOKENS.get(self._model.device.type, BATCH_TOKENS["cpu"])
        if not self._model._supports_logits_to_keep():  # then every token has logits
            tokens = min(tokens, logits)
        for batch in batches(rows, tokens, logits):
            bits = reference_bits(self._model, [rows[number] for number in batch], 0)
            losses[batch] = np.divide(bits, [rows[number].scored / math.log(2) for number in batch])
        return losses

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(Template(self.tokenizer))

    @cached_property
    def _model(self) -> Any:
        from tometune.models.base_models import base_models
        from tometune.models.load import load_model

        base_models.drop()  # two would not fit
        return load_model(self.source)
