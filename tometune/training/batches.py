"""Inputs and batches of a training: its rows or packs, and how the attention keeps their conversations apart."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, Sampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tometune.config.model import LoraConfig
from tometune.config.root import SeedsConfig
from tometune.config.trainer import TrainerConfig
from tometune.data.encoder import IGNORE
from tometune.data.tokens import Tokens, pack
from tometune.models.load import compute_dtype
from tometune.models.packed_attention import FLEX, VARLEN, Packed, kernel, packed_by
from tometune.models.source import ModelSource
from tometune.training.metrics import OnLog
from tometune.training.steps import in_packs, with_steps

log = logging.getLogger(__name__)

UNCHUNKED = ("logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Factors of logits in configs of models, e.g. of Granite and Falcon-H1, that TRL's `chunked_nll` ignores."""


@dataclass(frozen=True)
class TrainingInputs:
    """The base model, the rows with labels, and settings; can be pickled for Unsloth's process."""

    source: ModelSource
    tokens: Tokens
    trainer: TrainerConfig
    lora: LoraConfig
    seeds: SeedsConfig  # `adapter` is for the initial weights and dropout
    folder: Path  # run folder, absolute; gets `checkpoints/`, `metrics.jsonl`, and `adapter/` or `model/`
    cache: Path  # remembers which micro-batch fits this GPU
    loss_rows: Sequence[dict[str, Any]] = ()  # rows of `input_ids` and `labels` for `eval/loss`, longest first


@dataclass
class Training:
    """A training whose model is loaded: its rows or packs, its arithmetic and its attention."""

    model: Any
    tokenizer: Any
    inputs: TrainingInputs
    on_log: OnLog
    unsloth: bool = False
    rows: Dataset = field(init=False)
    kernel: str = field(init=False)  # attention of transformers, kernel by kernel
    reason: str = field(init=False, default="")  # why it is used for packs
    packed: Packed = field(init=False)
    dtype: torch.dtype = field(init=False)  # of the arithmetic; for an adapter, that of the base weights
    author_configs: tuple[Any, Any] = (None, None)
    """For `lora=none`: config and generation config as the model's author wrote them, saved with the trained model."""
    nondeterministic: str | None = None  # an operation of this training that has no deterministic kernel
    cuda_graph: bool = False  # whether passes run as a CUDA graph (`tometune.training.cuda_graph`)

    def __post_init__(self) -> None:
        """Make the packs, resolve `trainer.max_tokens`, and choose the attention."""
        trainer, model, dataset = self.inputs.trainer, self.inputs.source.config, self.inputs.tokens.dataset
        text = self.model.config.get_text_config()
        if trainer.loss_type == "chunked_nll" and any(getattr(text, name, 1) not in (None, 1) for name in UNCHUNKED):
            trainer = replace(trainer, loss_type="nll")
        self.dtype = compute_dtype(model.precision) if self.full else self.model.dtype
        self.rows = pack(dataset, trainer.max_length) if in_packs(trainer) else dataset
        trainer = with_steps(trainer, len(self.rows), self.inputs.tokens.counts.tokens)
        self.inputs = replace(self.inputs, trainer=trainer)
        self.kernel, self.packed = model.attn_implementation, Packed.positions
        if self.unsloth:
            self.kernel, self.packed = "unsloth", Packed.unsloth
        elif trainer.packing:
            window = getattr(text, "sliding_window", None)
            if window is not None and window < trainer.max_length:  # only transformers' masks have it
                self.kernel, self.reason = model.attn_implementation, f"a mask with the model's window, {window:,}"
            else:
                self.kernel, self.reason = kernel(self.dtype, model.attn_implementation)
            self.packed = packed_by(self.kernel)

    @property
    def attention(self) -> str:
        """The attention in use: compiled layers use FlexAttention instead of PyTorch's `varlen_attn`."""
        return FLEX if self.cuda_graph and self.kernel == VARLEN else self.kernel

    @property
    def full(self) -> bool:
        """Whether every weight is trained instead of an adapter."""
        return not self.inputs.lora.enabled

    @property
    def checkpoints(self) -> Path:
        return self.inputs.folder / "checkpoints"


class RowsAndBlank(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows; and at the index of their number a blank one: a single token without a label, which changes nothing."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        blank = {"input_ids": [0], "labels": [IGNORE], "seq_lengths": [1]}
        row: dict[str, Any] = blank if index == len(self) else self.rows[index]
        return row


class FullBatches(BatchSampler):
    """Batches of row indices; the last ones are filled with a blank row, so that each process gets as many."""

    def __init__(self, sampler: Sampler[int], size: int, processes: int, blank: int) -> None:
        super().__init__(sampler, size, drop_last=False)
        self.processes, self.blank = processes, blank

    def __len__(self) -> int:
        batches: int = super().__len__()
        return batches + -batches % self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = super().__len__()
        for batch in super().__iter__():
            yield batch + [self.blank] * (self.batch_size - len(batch))
        for _ in range(-batches % self.processes):
            yield [self.blank] * self.batch_size


@dataclass(frozen=True)
class Capacity:
    """How many conversations, and tokens with a label, one pass of a CUDA graph can hold."""

    conversations: int
    trained: int


@dataclass(frozen=True)
class BatchPart:
    """Consecutive whole conversations of a batch."""

    tokens: slice
    ends: slice  # of the batch's cumulative lengths, [conversations + 1]


def split(lengths: Sequence[int], labels: torch.Tensor, capacity: Capacity) -> list[BatchPart]:
    """Split a batch between conversations so that each part fits the capacity; nearly always there is one part.

    The labels are [tokens], on the CPU.
    """
    starts = [0, *accumulate(lengths)]
    trained = [0, *torch.cumsum(labels != IGNORE, 0).tolist()]
    begins = [0]
    for last in range(1, len(lengths)):
        begin = begins[-1]
        labelled = trained[starts[last + 1]] - trained[starts[begin]]
        if last + 1 - begin > capacity.conversations or labelled > capacity.trained:
            begins.append(last)
    return [
        BatchPart(slice(starts[begin], starts[end]), slice(begin, end + 1))
        for begin, end in zip(begins, [*begins[1:], len(lengths)], strict=True)
    ]


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """TRL's collator, which also gives the attention the lengths of the conversations.

    Without padding (`padding_free`) a batch is one row of all its tokens, [1, tokens]. Position ids restart with every
    conversation, and its first token has no label. Attention functions of transformers also get `cu_seq_lens_q`,
    `cu_seq_lens_k` [conversations + 1] and `max_length_q`, `max_length_k`; Unsloth's get `packed_seq_lengths`
    [conversations]; masks made from position ids need nothing more. A CUDA graph gets the `parts` that fit it, and the
    meter the number of `blank` rows, if there are any.
    """

    packed: Packed = Packed.positions
    capacity: Capacity | None = None  # of the CUDA graph, if there is one

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows of `input_ids`, `labels` and, for packs, `seq_lengths`."""
        batch: dict[str, Any] = super().torch_call(examples)
        if blank := sum(len(row["labels"]) == 1 for row in examples):
            batch["blank"] = blank
        if not self.padding_free or self.packed is Packed.positions:
            return batch
        lengths = [length for row in examples for length in row.get("seq_lengths", [len(row["labels"])])]
        if self.packed is Packed.unsloth:
            return batch | {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}
        ends, longest = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), max(lengths)
        batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        if self.capacity:
            batch["parts"] = split(lengths, batch["labels"][0], self.capacity)
        return batch
