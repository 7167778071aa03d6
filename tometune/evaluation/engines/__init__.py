"""Engines that generate answers: what they have in common, and the one that runs every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel


class UnsupportedError(Exception):
    """The engine cannot run this model on this device; the text is the reason, as a clause."""


class Engine:
    """Answers prompts in batches. This is the engine `transformers`; `CudaGraph` has the same methods."""

    name = "transformers"  # as in `eval.engine`

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Return the new tokens of each prompt, here of a left-padded batch and the model's own `generate`.

        A prompt has at least one token. Tokens after the end of turn have no meaning. Of the config, `max_new_tokens`,
        `eos_token_id` (a list) and `pad_token_id` are used. The noise is empty for greedy answers, else one processor
        that receives the scores of each step.

        Raises:
            torch.OutOfMemoryError: the batch is too large; the engine can be used again after `release`.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(prompt) for prompt in prompts]
        ids = pad_sequence(rows, True, config.pad_token_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, padding_side="left")
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            logits_processor=list(noise),
        )
        new: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return new

    def release(self) -> None:
        """Free the memory that is kept between batches."""
