"""Supervised fine-tuning: the arguments of TRL's trainer, the resume, the adapter that comes of it."""

import gc
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from tometune.config.errors import UserError
from tometune.config.root import Config
from tometune.data.packs import pack
from tometune.data.tokens import Tokens
from tometune.distributed import by_first, is_first
from tometune.models.attention import Packed, kernel, packed_by, training_attention
from tometune.seeding import seed_everything
from tometune.training.checkpoints import Interrupted, last_checkpoint, save_adapter, step_of
from tometune.training.collator import Collator
from tometune.training.curves import Curves, OnLog
from tometune.training.fitting import choose_room
from tometune.training.meter import Meter, peak_memory_bytes
from tometune.training.progress import progress_callbacks
from tometune.training.room import Room
from tometune.training.steps import Step, effective_batch, in_packs, sizes, steps_of
from tometune.training.trainer import Arguments, LogLastStep, MeteredTrainer, StopOnSigterm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What run.json says under `train`."""

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


@dataclass
class Task:
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

    def __post_init__(self) -> None:
        """Make the packs, pick the attention and say which."""
        trainer = self.config.trainer
        self.rows = pack(self.tokens.dataset, trainer.max_length) if in_packs(trainer) else self.tokens.dataset
        wanted = self.config.model.attn_implementation
        self.attention, self.packed = ("unsloth", Packed.unsloth) if self.unsloth else (wanted, Packed.positions)
        if trainer.packing and not self.unsloth:
            self.attention, why = kernel(self.model.dtype, wanted)
            self.packed = packed_by(self.attention)
            log.info("attention over packs: %s (%s)", self.attention, why)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"


def fit(
    model: Any,
    tokenizer: Any,
    tokens: Tokens,
    config: Config,
    folder: Path,
    on_log: OnLog,
    cache: Path,
    unsloth: bool = False,
) -> TrainResult:
    """Train the adapter, from the last whole checkpoint if there is one, and save it under `folder/adapter`.

    Where the GPU runs out of memory although the micro-batch was measured to fit, the training goes on once from its
    last checkpoint with half the micro-batch; what a step is stays the same.

    Args:
        model: a `PeftModel` whose adapter was just made from its seed.
        tokenizer: for padding.
        tokens: rows with labels.
        config: `trainer`, and `seeds.order` and `seeds.adapter` (dropout).
        folder: the run's folder; gets `checkpoints/`, `metrics.jsonl`, `adapter/`.
        on_log: takes the metrics of each logging step.
        cache: remembers what fits.
        unsloth: whether the model is Unsloth's.

    Raises:
        Interrupted: SIGTERM came; a checkpoint was saved.
        SaveError: the disk is full.
        UserError: the loss is no longer a number, or not even one row fits into the GPU.
    """
    task = Task(model, tokenizer, tokens, config, folder, on_log, unsloth)
    fresh = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    with training_attention(model, None if unsloth else task.attention):
        room = choose_room(lambda step, again: _trainer(task, step, again), task, sizes(config), cache)
        try:
            return _train(task, room)
        except torch.OutOfMemoryError as error:
            if room.micro_batch == 1:
                raise no_room(room) from None
            del error
        gc.collect()
        torch.cuda.empty_cache()
        smaller = max(size for size in range(1, room.micro_batch) if effective_batch(config) % size == 0)
        log.warning("the GPU ran out of memory; once more with trainer.micro_batch=%d, same steps", smaller)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in fresh:
                    weight.copy_(fresh[name])
        room = Room(smaller, room.gradient_checkpointing, room.memory_bytes)
        try:
            return _train(task, room)
        except torch.OutOfMemoryError:
            raise no_room(room) from None


def _trainer(
    task: Task, step: Step, checkpointing: bool, meter: Meter | None = None, stop: Any = None
) -> MeteredTrainer:
    """Return TRL's trainer over this task, with the adapter's weights as they were."""
    model, config = task.model, task.config
    held = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    meter = meter or Meter()
    trainer = MeteredTrainer(
        model=model,
        args=arguments(config, model.dtype, task.checkpoints, step, checkpointing, task.unsloth),
        train_dataset=task.rows,
        data_collator=Collator(task.tokenizer.pad_token_id, padding_free=config.trainer.packing, packed=task.packed),
        processing_class=task.tokenizer,
        callbacks=[*([stop] if stop else []), LogLastStep(), *progress_callbacks()],
        meter=meter,
        curves=Curves(task.folder / "metrics.jsonl", meter, task.on_log),
        fused_loss=task.unsloth,
    )
    trainer.remove_callback(PrinterCallback)
    for name, weight in model.named_parameters():  # over a 4-bit base, TRL makes the adapter bfloat16, which
        if name in held:  # rounds AdamW's small steps away and cannot be trained in fp16
            weight.data = held[name]
    return trainer


def _train(task: Task, room: Room) -> TrainResult:
    """Run the loop with what fits, and save the adapter."""
    config = task.config
    checkpoint = by_first(lambda: last_checkpoint(task.checkpoints))
    meter = Meter.load(checkpoint) if checkpoint else Meter()
    seed_everything(config.seeds.adapter)
    step = Step(effective_batch(config), room.micro_batch)
    with StopOnSigterm() as stop:
        trainer = _trainer(task, step, room.gradient_checkpointing, meter, stop)
        if is_first():
            trainer.curves.rewind(step_of(checkpoint) if checkpoint else 0)
        plan(task, step, checkpoint)
        meter.start()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.told:
            log.warning("told to stop: step %d is saved, the same command goes on from it", trainer.state.global_step)
            raise Interrupted
    meter.rates()
    if trainer.is_world_process_zero():
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), task.folder / "adapter", config.model.id)
    return _result(task, room, step, trainer)


def _result(task: Task, room: Room, step: Step, trainer: MeteredTrainer) -> TrainResult:
    """Return what the record says, and hold the estimate of memory against the peak."""
    totals, peak = trainer.meter.totals, peak_memory_bytes()
    if room.memory_bytes is not None:
        log.info("peak memory %.1f GB, %.1f GB were estimated", peak / 1e9, room.memory_bytes / 1e9)
    return TrainResult(
        steps=trainer.state.global_step,
        epochs=round(trainer.state.epoch or 0.0, 4),
        effective_batch=step.rows,
        micro_batch=step.micro_batch,
        gradient_checkpointing=room.gradient_checkpointing,
        attention=task.attention,
        tokens=totals.tokens,
        padded_tokens=totals.padded_tokens,
        trained_tokens=totals.trained_tokens,
        seconds=round(totals.seconds, 3),
        tokens_per_second=round(totals.tokens / totals.seconds, 1) if totals.seconds else 0.0,
        peak_memory_bytes=peak,
        estimated_memory_bytes=room.memory_bytes,
        final_loss=trainer.curves.last_loss,
    )


def arguments(
    config: Config,
    dtype: torch.dtype,
    checkpoints: Path,
    step: Step,
    checkpointing: bool,
    unsloth: bool = False,
) -> Arguments:
    """Return TRL's arguments; each that matters is passed, since backends change the defaults."""
    trainer = config.trainer
    return Arguments(
        output_dir=str(checkpoints),
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=trainer.lr_scheduler_type,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        optim=trainer.optim,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=trainer.max_grad_norm,
        num_train_epochs=trainer.num_train_epochs,
        max_steps=trainer.max_steps or -1,
        per_device_train_batch_size=step.micro_batch,
        gradient_accumulation_steps=step.accumulation,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seeds.adapter,
        data_seed=config.seeds.order,
        train_sampling_strategy="random",
        max_length=trainer.max_length,
        packing=False,  # the rows are packed already, and fit() gives the collator that keeps them apart:
        padding_free=False,  # TRL takes that collator only where it is told of neither
        loss_type="nll" if unsloth else trainer.loss_type,  # Unsloth's models have a fused loss of their own
        use_liger_kernel=False,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        average_tokens_across_devices=True,
        auto_find_batch_size=False,
        completion_only_loss=False,
        assistant_only_loss=False,  # the labels are made and checked by tometune.data.tokens
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_packing=False,
        activation_offloading=False,
        remove_unused_columns=False,
        dataloader_num_workers=trainer.dataloader_num_workers,
        dataloader_drop_last=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="steps",
        logging_steps=trainer.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=trainer.save_steps,
        save_total_limit=trainer.save_total_limit,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )


def plan(task: Task, step: Step, checkpoint: Path | None) -> None:
    """Log what is about to be done, in derived numbers."""
    config, counts, rows = task.config, task.tokens.counts, len(task.rows)
    an_epoch, steps = math.ceil(rows / step.rows), steps_of(config, rows)
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
