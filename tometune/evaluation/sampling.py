"""Drawn answers: each example has a random stream of its own, so that batches do not change what is drawn."""

import torch
from transformers import LogitsProcessor

from tometune.common.seeding import stream


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling.

    The argmax of logits / temperature + Gumbel noise is a draw from softmax(logits / temperature); see Maddison, Tarlow
    and Minka 2014, "A* Sampling", arXiv:1411.0030, section 2. The noise comes from NumPy on the CPU, so it is the same
    on every device.
    """

    def __init__(self, temperature: float, seed: int, examples: list[int]) -> None:
        """Start one stream a row.

        Args:
            temperature: above 0; lower is nearer to greedy.
            seed: `seeds.generation`.
            examples: number of the example in each row of the batch.
        """
        self.temperature = temperature
        self.streams = [stream(seed, f"answer {example}") for example in examples]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:  # noqa: ARG002
        """Return noisy scores, [rows, vocabulary]; called once a token."""
        noise = [torch.from_numpy(generator.gumbel(size=scores.shape[-1])) for generator in self.streams]
        return scores.float() / self.temperature + torch.stack(noise).to(device=scores.device, dtype=torch.float32)
