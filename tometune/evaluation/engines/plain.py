"""The engine `transformers`: its own `generate`, for every model and device."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel


class Plain:
    """Left-pads a batch and calls `model.generate`."""

    name = "transformers"

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a causal language model, with or without an adapter."""
        self.model = model

    def kind(self, rows: int) -> str:  # noqa: ARG002 -- all are the same
        """Return the name; see `Engine`."""
        return self.name

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Generate for one batch; see `Engine`."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            logits_processor=list(noise),
        )
        new: list[list[int]] = output[:, width:].tolist()
        return new

    def release(self) -> None:
        """Nothing is kept."""
