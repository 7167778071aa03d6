"""What a training is about to do, and what came of it: the log's lines and what run.json says under `train`."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from tometune.common.errors import UserError
from tometune.training.batches import Training
from tometune.training.memory import Room
from tometune.training.metrics import peak_memory_bytes
from tometune.training.optimisers import trainable
from tometune.training.steps import Step, in_packs, steps_of
from tometune.training.trainer import MeteredTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What run.json says under `train`."""

    kind: str
    """`lora`, or `full` where every weight was trained."""

    trainable_parameters: int
    steps: int
    epochs: float
    effective_batch: int
    """Rows (packs, or conversations) a step over all processes."""

    micro_batch: int
    """Of them, in one forward pass."""

    gradient_checkpointing: bool
    attention: str
    """The attention that trained: by transformers' name, or `unsloth`."""

    tokens: int
    padded_tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    """Real tokens, padding not counted."""

    peak_memory_bytes: int
    estimated_memory_bytes: int | None
    """Of the GPU, before the start."""

    final_loss: float | None


def result_of(training: Training, room: Room, step: Step, trainer: MeteredTrainer) -> TrainResult:
    """Return what the record says, and hold the estimate of memory against the peak."""
    totals, peak = trainer.meter.totals, peak_memory_bytes()
    if room.memory_bytes is not None:
        log.info("peak memory %.1f GB, %.1f GB were estimated", peak / 1e9, room.memory_bytes / 1e9)
    return TrainResult(
        kind="full" if training.whole else "lora",
        trainable_parameters=trainable(training.model),
        steps=trainer.state.global_step,
        epochs=round(trainer.state.epoch or 0.0, 4),
        effective_batch=step.rows,
        micro_batch=step.micro_batch,
        gradient_checkpointing=room.gradient_checkpointing,
        attention=training.attention,
        tokens=totals.tokens,
        padded_tokens=totals.padded_tokens,
        trained_tokens=totals.trained_tokens,
        seconds=round(totals.seconds, 3),
        tokens_per_second=round(totals.tokens / totals.seconds, 1) if totals.seconds else 0.0,
        peak_memory_bytes=peak,
        estimated_memory_bytes=room.memory_bytes,
        final_loss=trainer.curves.last_loss,
    )


def plan(training: Training, step: Step, checkpoint: Path | None) -> None:
    """Log what is about to be done, in derived numbers."""
    config, counts, rows = training.config, training.tokens.counts, len(training.rows)
    an_epoch, steps = math.ceil(rows / step.rows), steps_of(config, rows)
    if training.whole:
        log.info("every weight is trained: %s, in float32", f"{trainable(training.model):,}")
    start = f", goes on from {checkpoint.name}" if checkpoint else ""
    log.info(
        "training: %s %s of %s tokens (%s trained), %d a step, %d at a time, %d of %d steps an epoch%s",
        *(f"{rows:,}", "packs" if in_packs(config.trainer) else "rows", f"{counts.tokens:,}"),
        *(f"{counts.trainable_tokens:,}", step.rows, step.micro_batch, steps, an_epoch, start),
    )


def no_room(room: Room) -> UserError:
    """Return the line that names the setting to change where the GPU is too small."""
    hint = "" if room.gradient_checkpointing else "set trainer.gradient_checkpointing=true, or "
    return UserError(
        f"trainer.micro_batch={room.micro_batch}: the GPU ran out of memory while training; {hint}lower "
        "trainer.max_length; the same command goes on from the last checkpoint"
    )
