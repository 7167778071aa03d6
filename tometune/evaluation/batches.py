"""Batches that become smaller once, where the device's memory runs out."""

import logging
from collections.abc import Callable

import torch
from transformers import GenerationConfig

from tometune.common.errors import UserError
from tometune.evaluation.engines.base import Engine
from tometune.evaluation.sampling import GumbelNoise

log = logging.getLogger(__name__)


def noise_of(temperature: float, seed: int, examples: list[int], count: int) -> list[GumbelNoise]:
    """Return the noise of the first examples, each from the start of its stream; none for greedy answers."""
    return [GumbelNoise(temperature, seed, examples[:count])] if temperature else []


class Batches:
    """Answers batches, and halves them once if the memory runs out."""

    def __init__(self, engine: Engine, size: int, config: GenerationConfig) -> None:
        self.engine, self.size, self.config = engine, size, config
        self.halved = False

    def answer(self, prompts: list[list[int]], noise: Callable[[int], list[GumbelNoise]]) -> list[list[int]]:
        """Answer the first `size` prompts or fewer; `noise` is told how many, and starts its streams anew.

        Raises:
            UserError: the memory runs out again.
        """
        try:
            return self.engine.answer(prompts, self.config, noise(len(prompts)))
        except torch.OutOfMemoryError:
            if self.halved or len(prompts) == 1:
                raise UserError(
                    f"eval.batch_size={len(prompts)}: the device has too little memory for prompts of "
                    f"{max(map(len, prompts))} tokens; lower it"
                ) from None
        # Only here has the error let go of what the batch had allocated.
        self.engine.release()
        torch.cuda.empty_cache()
        self.halved, self.size = True, max(1, len(prompts) // 2)
        log.warning("%d prompts at once are too many for the device's memory: %d from here on", len(prompts), self.size)
        return self.answer(prompts[: self.size], noise)
