"""Batches: the rows or packs of a training, and how the attention keeps their conversations apart."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tometune.config.root import Config
from tometune.data.labels import IGNORE
from tometune.data.packing import pack
from tometune.data.tokens import Tokens
from tometune.models.packed_attention import Packed, kernel, packed_by
from tometune.models.transformers_backend import compute_dtype
from tometune.training.metrics import OnLog
from tometune.training.steps import in_packs


@dataclass(frozen=True)
class Fits:
    """How much one pass has room for, beside its tokens."""

    conversations: int
    trained: int
    """Tokens with a label; not fewer than a conversation can have."""


@dataclass(frozen=True)
class Part:
    """Whole conversations of a batch that lie end to end."""

    tokens: slice
    ends: slice
    """Of the batch's cumulative lengths, [conversations + 1]."""


def parts(lengths: Sequence[int], labels: torch.Tensor, fits: Fits) -> list[Part]:
    """Cut a batch between conversations, so that each part fits; nearly always there is one.

    Args:
        lengths: of the conversations.
        labels: of all tokens, [tokens], on the CPU.
        fits: what a part may hold.
    """
    starts = [0, *accumulate(lengths)]
    trained = [0, *torch.cumsum(labels != IGNORE, 0).tolist()]
    begins = [0]
    for last in range(1, len(lengths)):
        begin = begins[-1]
        more = trained[starts[last + 1]] - trained[starts[begin]]
        if last + 1 - begin > fits.conversations or more > fits.trained:
            begins.append(last)
    return [
        Part(slice(starts[begin], starts[end]), slice(begin, end + 1))
        for begin, end in zip(begins, [*begins[1:], len(lengths)], strict=True)
    ]


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


log = logging.getLogger(__name__)


@dataclass
class Training:
    """One training: what is trained on what, under which backend."""

    model: Any
    tokenizer: Any
    tokens: Tokens
    config: Config
    folder: Path
    on_log: OnLog
    unsloth: bool = False
    rows: Dataset = field(init=False)
    attention: str = field(init=False)
    packed: Packed = field(init=False)
    dtype: torch.dtype = field(init=False)
    """Of the arithmetic; that of the weights themselves where only an adapter is trained."""
    published: tuple[Any, Any] = (None, None)
    """Of a whole model: config and generation config as its author wrote them, to be saved with it."""

    graphed: bool = False
    """Whether passes are made as a CUDA graph (`tometune.training.cuda_graph`)."""

    def __post_init__(self) -> None:
        """Make the packs, pick the attention and say which."""
        trainer = self.config.trainer
        self.dtype = compute_dtype(self.config.model.precision) if self.whole else self.model.dtype
        self.rows = pack(self.tokens.dataset, trainer.max_length) if in_packs(trainer) else self.tokens.dataset
        wanted = self.config.model.attn_implementation
        self.attention, self.packed = ("unsloth", Packed.unsloth) if self.unsloth else (wanted, Packed.positions)
        if trainer.packing and not self.unsloth:
            self.attention, why = kernel(self.dtype, wanted)
            self.packed = packed_by(self.attention)
            log.info("attention over packs: %s (%s)", self.attention, why)

    @property
    def whole(self) -> bool:
        """Whether every weight is trained, and no adapter."""
        return not self.config.lora.enabled

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"
