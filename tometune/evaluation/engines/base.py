"""What every engine offers, and how one says that it cannot."""

from collections.abc import Sequence
from typing import Protocol

from transformers import GenerationConfig, LogitsProcessor


class UnsupportedError(Exception):
    """This engine cannot run this model on this device; the text says why, as the end of a sentence."""


class Engine(Protocol):
    """Answers prompts, a batch at a time."""

    name: str
    """As in `eval.engine`: transformers, cuda_graph or vllm."""

    def kind(self, rows: int) -> str:
        """Return what scores are kept with: the name, and whether batches of so many rows use compiled parts."""

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Return the new tokens of each prompt; what follows an end-of-turn token means nothing.

        Args:
            prompts: token ids, at least one a prompt.
            config: `max_new_tokens`, `eos_token_id` (a list) and `pad_token_id` are read.
            noise: nothing for greedy answers, or one processor that is given the scores of each step.

        Raises:
            torch.OutOfMemoryError: the batch is too large; the engine can be used again after `release`.
        """

    def release(self) -> None:
        """Give back memory that is kept from batch to batch."""
