"""GPU memory of a training."""

import gc
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from tometune.common.distributed import agree, processes
from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.training.batches import Training
from tometune.training.cuda_graph import fits_of
from tometune.training.optimisers import embedded, trainable, with_optimiser
from tometune.training.steps import Step, effective_batch
from tometune.training.trainer import MeteredTrainer

log = logging.getLogger(__name__)

NAME = "micro_batch.json"
SCHEMA = 2
SPARE = 0.08
"""Share of the GPU's memory that is left free: longer conversations, fragmentation, the desktop."""

ON_CPU = 4
"""Rows that a CPU takes at a time: more are no faster."""


@dataclass(frozen=True)
class Room:
    """What fits."""

    micro_batch: int
    gradient_checkpointing: bool
    memory_bytes: int | None
    """Estimated peak; None on a CPU, where nothing was measured."""


Measure = Callable[[int, bool], int]
"""Makes one forward and backward pass over full rows, so many at a time, with or without checkpointing; returns the
peak in bytes. Raises torch.OutOfMemoryError."""


def find_room(measure: Measure, sizes: Sequence[int], checkpointing: bool | str, free: int) -> Room:
    """Return the largest micro-batch that fits; activations are recomputed only where one row does not fit without.

    Two sizes are measured for that: one row, and what follows from it.

    Args:
        measure: see `Measure`.
        sizes: to choose from, the largest first.
        checkpointing: `auto`, or what it has to be.
        free: bytes that may be taken.

    Raises:
        UserError: not even one row fits.
    """
    for again in [False, True] if checkpointing == "auto" else [bool(checkpointing)]:
        found = _largest(lambda size, again=again: measure(size, again), sizes, free)  # type: ignore[misc]
        if found is not None:
            return Room(found[0], again, found[1])
    size = sizes[-1]
    raise UserError(
        f"trainer.max_length: {size} row{'s' if size > 1 else ''} of this length and the model do not fit into the "
        f"GPU's {free / 1e9:.1f} free GB; lower trainer.max_length"
        + (", set trainer.micro_batch=auto" if size > 1 else "")
        + ("" if checkpointing in ("auto", True) else ", set trainer.gradient_checkpointing=auto")
        + ", or take a smaller model"
    )


def _largest(measure: Callable[[int], int], sizes: Sequence[int], free: int) -> tuple[int, int] | None:
    """Return the largest size that fits and its peak; None if none does."""
    smallest = sizes[-1]
    least = _peak(measure, smallest)
    if least is None or least > free:
        return None
    if len(sizes) == 1:
        return smallest, least
    base = _peak(measure, 0) or 0
    a_row = max(1, (least - base) // smallest)
    for size in sizes[:-1]:
        if base + a_row * size > free:
            continue
        peak = _peak(measure, size)
        if peak is not None and peak <= free:
            return size, peak
    return smallest, least


def _peak(measure: Callable[[int], int], size: int) -> int | None:
    """Return the peak at a size; None where the GPU ran out."""
    try:
        return measure(size)
    except torch.OutOfMemoryError:
        return None
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def remembered(cache: Path, key: str) -> Room | None:
    """Return what was found for this GPU, model and length before."""
    found = _read(cache).get(key)
    return Room(**found) if found else None


def remember(cache: Path, key: str, room: Room) -> None:
    """Keep what was found."""
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{NAME}.lock"):
        write_json(cache / NAME, {"schema": SCHEMA, "rooms": _read(cache) | {key: asdict(room)}})


def key_of(parts: dict[str, Any]) -> str:
    """Return the name of a kind of run: this GPU, and all that memory depends on."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return json.dumps({"gpu": gpu.name, "memory": gpu.total_memory, "torch": torch.__version__, **parts})


def free_bytes() -> int:
    """Return what this process may take of the GPU: what is free, with what it has itself, less a margin."""
    free, total = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - SPARE * total)


def _read(cache: Path) -> dict[str, Any]:
    """Return what is kept; a file that is broken or of another version is as good as none."""
    try:
        content = json.loads((cache / NAME).read_text(encoding="utf-8"))
        rooms: dict[str, Any] = content["rooms"] if content["schema"] == SCHEMA else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return rooms


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
