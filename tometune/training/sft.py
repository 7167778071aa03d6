"""Supervised fine-tuning: the arguments of TRL's trainer, the resume, the adapter that comes of it."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tometune.config.root import Config
from tometune.data.packs import pack
from tometune.data.tokens import Tokens
from tometune.distributed import by_first, is_first
from tometune.seeding import seed_everything
from tometune.stopping import Stopped, told_to_stop
from tometune.training.checkpoints import last_checkpoint, save_adapter, step_of
from tometune.training.curves import Curves, OnLog
from tometune.training.meter import Meter, peak_memory_bytes
from tometune.training.progress import progress_callbacks
from tometune.training.steps import effective_batch, steps_of
from tometune.training.trainer import Arguments, LogLastStep, MeteredTrainer, StopAfterStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What run.json says under `train`."""

    steps: int
    epochs: float
    effective_batch: int
    """Rows a step over all processes."""

    tokens: int
    padded_tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    """Real tokens, padding not counted."""

    peak_memory_bytes: int
    final_loss: float | None


def fit(model: Any, tokenizer: Any, tokens: Tokens, config: Config, folder: Path, on_log: OnLog) -> TrainResult:
    """Train the adapter, from the last whole checkpoint if there is one, and save it under `folder/adapter`.

    Args:
        model: a `PeftModel` whose adapter was just made from its seed.
        tokenizer: for padding.
        tokens: rows with labels.
        config: `trainer`, and `seeds.order` and `seeds.adapter` (dropout).
        folder: the run's folder; gets `checkpoints/`, `metrics.jsonl`, `adapter/`.
        on_log: takes the metrics of each logging step.

    Raises:
        Stopped: SIGTERM or SIGHUP came; a checkpoint was saved.
        SaveError: the disk is full.
        UserError: the loss is no longer a number.
    """
    rows = pack(tokens.dataset, config.trainer.max_length) if config.trainer.packing else tokens.dataset
    checkpoint = by_first(lambda: last_checkpoint(folder / "checkpoints"))
    meter = Meter.load(checkpoint) if checkpoint else Meter()
    curves = Curves(folder / "metrics.jsonl", meter, on_log)
    if is_first():
        curves.rewind(step_of(checkpoint) if checkpoint else 0)
    seed_everything(config.seeds.adapter)
    held = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    stop = StopAfterStep()
    with told_to_stop(stop.tell):
        trainer = MeteredTrainer(
            model=model,
            args=arguments(config, model.dtype, folder / "checkpoints"),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=config.trainer.packing),
            processing_class=tokenizer,
            callbacks=[stop, LogLastStep(), *progress_callbacks()],
            meter=meter,
            curves=curves,
        )
        trainer.remove_callback(PrinterCallback)
        for name, weight in model.named_parameters():  # over a 4-bit base, TRL makes the adapter bfloat16, which
            if name in held:  # rounds AdamW's small steps away and cannot be trained in fp16
                weight.data = held[name]
        effective = effective_batch(config)
        plan(config, len(rows), tokens, effective, checkpoint)
        meter.start()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.signal:
            log.warning("told to stop: step %d is saved", trainer.state.global_step)
            raise Stopped(stop.signal)
    meter.rates()
    if trainer.is_world_process_zero():
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), folder / "adapter", config.model.id)
    totals = meter.totals
    return TrainResult(
        steps=trainer.state.global_step,
        epochs=round(trainer.state.epoch or 0.0, 4),
        effective_batch=effective,
        tokens=totals.tokens,
        padded_tokens=totals.padded_tokens,
        trained_tokens=totals.trained_tokens,
        seconds=round(totals.seconds, 3),
        tokens_per_second=round(totals.tokens / totals.seconds, 1) if totals.seconds else 0.0,
        peak_memory_bytes=peak_memory_bytes(),
        final_loss=curves.last_loss,
    )


def arguments(config: Config, dtype: torch.dtype, checkpoints: Path) -> Arguments:
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
        per_device_train_batch_size=trainer.per_device_train_batch_size,
        gradient_accumulation_steps=trainer.gradient_accumulation_steps,
        gradient_checkpointing=trainer.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if trainer.gradient_checkpointing else None,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seeds.adapter,
        data_seed=config.seeds.order,
        train_sampling_strategy="random",
        max_length=trainer.max_length,
        packing=False,  # the rows are packed already, and fit() gives the collator that keeps them apart:
        padding_free=False,  # TRL takes that collator only where it is told of neither
        loss_type=trainer.loss_type,
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


def plan(config: Config, rows: int, tokens: Tokens, effective: int, checkpoint: Path | None) -> None:
    """Log what is about to be done, in derived numbers."""
    an_epoch, steps = math.ceil(rows / effective), steps_of(config, rows)
    start = f", goes on from {checkpoint.name}" if checkpoint else ""
    log.info(
        "training: %s %s of %s tokens (%s trained), effective batch %d, %d of %d steps an epoch%s",
        *(f"{rows:,}", "packs" if config.trainer.packing else "rows", f"{tokens.counts.tokens:,}"),
        *(f"{tokens.counts.trainable_tokens:,}", effective, steps, an_epoch, start),
    )
