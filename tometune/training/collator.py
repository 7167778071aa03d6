"""Batches: rows padded to the longest, or end to end with what the attention needs to keep them apart."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tometune.models.attention import Packed
from tometune.training.parts import Fits, parts


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """TRL's collator, which also tells the attention where conversations begin.

    End to end (`padding_free`), a batch is one row of all its tokens, [1, tokens]; position ids start again with every
    conversation, and its first token has no label. What is added depends on who reads it:
    `cu_seq_lens_q`, `cu_seq_lens_k` [conversations + 1] and `max_length_q`, `max_length_k` for transformers' attention
    functions, `packed_seq_lengths` [conversations] for Unsloth's; nothing where position ids say it all. A graph is
    told the `parts` in which it has room for the batch.
    """

    packed: Packed = Packed.positions
    fits: Fits | None = None
    """What the graph that reads the batches has room for, if one does."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows of `input_ids`, `labels` and, if they are packs, `seq_lengths`."""
        batch: dict[str, Any] = super().torch_call(examples)
        if not self.padding_free or self.packed is Packed.positions:
            return batch
        lengths = [length for row in examples for length in row.get("seq_lengths", [len(row["labels"])])]
        if self.packed is Packed.unsloth:
            batch["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32)
            return batch
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        batch |= {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        if self.fits:
            batch["parts"] = parts(lengths, batch["labels"][0], self.fits)
        return batch
