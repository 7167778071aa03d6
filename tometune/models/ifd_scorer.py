"""Instruction-following difficulty: how little a prompt helps the base model to predict the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from jinja2 import TemplateError

from tometune.models.machine import resolve_precision
from tometune.models.source import ModelSource, fingerprint

VERSION = 1  # raised when the same rows get other scores
MOST_TOKENS = 512  # of the prompt, from its end, and of the answer, from its start
BATCH_TOKENS = 4_096  # of a forward pass, with padding

Ids = list[int]


@dataclass(frozen=True)
class IfdScorer:
    """Li et al. 2023 (arXiv:2308.12032), for the first answer of a conversation; the model is loaded at the first call.

    The score is the base model's mean loss on the answer given the prompt, divided by that on the answer alone. At 1 or
    above the prompt does not help, which the authors take for a sign that answer and prompt do not match. Such a row
    gets the negative ratio, so it ranks below all others.
    """

    source: ModelSource
    tokenizer: Any

    @property
    def fingerprint(self) -> str:
        model, template = self.source.config, sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
        return (
            f"ifd-{VERSION} {fingerprint(model)} {model.quantization} {resolve_precision(model.precision)} {template}"
        )

    def __call__(self, conversations: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Return the score of each conversation, float32; -inf if there is no answer to a prompt."""
        scores = np.full(len(conversations), -np.inf, dtype=np.float32)
        found = {number: pair for number, turns in enumerate(conversations) if (pair := self._tokens(turns))}
        start = self.tokenizer.bos_token_id
        alone = [start if start is not None else self.tokenizer.eos_token_id]
        given = self._losses([(prompt, answer) for prompt, answer in found.values()])
        direct = self._losses([(alone, answer) for _, answer in found.values()])
        ratios = given / np.maximum(direct, 1e-6)
        scores[list(found)] = np.where(ratios < 1, ratios, -ratios)
        return scores

    def _tokens(self, turns: Sequence[dict[str, str]]) -> tuple[Ids, Ids] | None:
        """Return the tokens of the prompt and of the first answer; None if the chat template has no such prompt."""
        first = next((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), 0)
        answer = self.tokenizer(turns[first]["content"], add_special_tokens=False)["input_ids"][:MOST_TOKENS]
        if not first or not answer:
            return None
        try:
            text = self.tokenizer.apply_chat_template(list(turns[:first]), add_generation_prompt=True, tokenize=False)
        except TemplateError:
            return None
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][-MOST_TOKENS:], answer

    def _losses(self, pairs: Sequence[tuple[Ids, Ids]]) -> np.ndarray:
        """Return the mean loss per token of each answer after its context, in nats; long pairs come first."""
        import torch

        losses = np.empty(len(pairs))
        lengths = [len(context) + len(answer) for context, answer in pairs]
        order = sorted(range(len(pairs)), key=lambda number: -lengths[number])
        with torch.inference_mode():
            while order:
                size = max(1, BATCH_TOKENS // lengths[order[0]])
                batch, order = order[:size], order[size:]
                longest = lengths[batch[0]]
                ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest)
                for row, number in enumerate(batch):
                    ids[row, : lengths[number]] = torch.tensor([*pairs[number][0], *pairs[number][1]])
                    mask[row, : lengths[number]] = 1
                ids = ids.to(self._model.device)
                logits = self._model(input_ids=ids, attention_mask=mask.long().to(ids.device), use_cache=False).logits
                for row, number in enumerate(batch):
                    begin, end = len(pairs[number][0]), lengths[number]
                    predicted = logits[row, begin - 1 : end - 1].float()
                    losses[number] = torch.nn.functional.cross_entropy(predicted, ids[row, begin:end]).item()
        return losses

    @cached_property
    def _model(self) -> Any:
        from tometune.models.load import load_model

        return load_model(self.source)
