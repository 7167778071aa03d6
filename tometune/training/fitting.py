"""Which micro-batch a training takes: what is set, what was found before, or what is measured now."""

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tometune.common.distributed import agree, processes
from tometune.training.graph import fits_of
from tometune.training.optimiser import embedded, trainable, with_optimiser
from tometune.training.room import ON_CPU, Room, find_room, free_bytes, key_of, remember, remembered
from tometune.training.steps import Step, effective_batch
from tometune.training.subject import Training
from tometune.training.trainer import MeteredTrainer

log = logging.getLogger(__name__)

Build = Callable[[Step, bool], MeteredTrainer]
"""Makes a trainer of so many rows at a time, with or without gradient checkpointing."""


def choose_room(build: Build, training: Training, sizes: Sequence[int], cache: Path) -> Room:
    """Return the micro-batch and whether activations are recomputed; on a GPU with the peak that was measured.

    Args:
        build: makes the trainer whose passes are measured.
        training: what is trained on what.
        sizes: that make a whole step, the largest first; one if it is set.
        cache: remembers what was found for this GPU, model and length.

    Raises:
        UserError: not even one row fits.
    """
    wanted = training.config.trainer.gradient_checkpointing
    if not torch.cuda.is_available():
        at_once = 1 if training.config.trainer.packing else ON_CPU  # a pack fills a CPU by itself
        size = sizes[0] if len(sizes) == 1 else next(size for size in sizes if size <= at_once)
        return Room(size, wanted is True, None)
    key = key_of(_parts(training, sizes))
    room = remembered(cache, key)
    if room is None or (room.memory_bytes or 0) > free_bytes():
        room = find_room(lambda size, again: _measure(build, training, size, again), sizes, wanted, free_bytes())
        if processes() > 1:
            room = agree(room)
        remember(cache, key, room)
    log.info(
        "memory: about %.1f GB of the GPU's %.1f; %d rows at a time, activations %s%s",
        *((room.memory_bytes or 0) / 1e9, torch.cuda.mem_get_info()[1] / 1e9, room.micro_batch),
        *("computed twice" if room.gradient_checkpointing else "kept", "" if sizes[1:] else " (trainer.micro_batch)"),
    )
    return room


def _parts(training: Training, sizes: Sequence[int]) -> dict[str, Any]:
    """Return all that memory depends on beside the GPU."""
    model, lora, trainer = training.config.model, training.config.lora, training.config.trainer
    return {
        "model": f"{model.id} {model.quantization} {training.dtype}",
        "adapter": f"{lora.r} {sorted(lora.target_modules)} {lora.use_dora} {lora.lora_dropout}"
        if lora.enabled
        else "none, every weight is trained",
        "rows": f"{trainer.max_length} {trainer.packing} {list(sizes)}",
        "step": f"{training.attention} {trainer.gradient_checkpointing} {trainer.loss_type} {trainer.optim}"
        f"{f' graph {fits_of(training, sizes[0])}' if training.graphed else ''}",
    }


def _measure(build: Build, training: Training, size: int, again: bool) -> int:
    """Return the peak in bytes of a pass over so many full rows; of none, what is taken already.

    The rows are as long as they can be and every token has a label, so no batch of the data takes more; a graph has
    room for the labels that this data has (`fits_of`).
    """
    gc.collect()
    torch.cuda.empty_cache()
    if size == 0:
        return int(torch.cuda.memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    trainer = build(Step(effective_batch(training.config), size), again)
    try:
        trainer.full_pass(_full_rows(training, size))
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        weights, embeddings = trainable(training.model), embedded(training.model)
        return with_optimiser(peak, held, training.config.trainer.optim, weights, embeddings)
    finally:
        training.model.zero_grad(set_to_none=True)


def _full_rows(training: Training, size: int) -> list[dict[str, Any]]:
    """Return rows of max_length tokens; a pack is four conversations."""
    length, vocabulary = training.config.trainer.max_length, training.model.config.vocab_size
    ids = [(7 * position) % min(1000, vocabulary) for position in range(length)]
    row: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if "seq_lengths" in training.rows.column_names:
        quarter = length // 4
        row["seq_lengths"] = [quarter, quarter, quarter, length - 3 * quarter]
    return [dict(row) for _ in range(size)]
