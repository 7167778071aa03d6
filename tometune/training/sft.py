"""Supervised fine-tuning: the loop over TRL's trainer, the resume, the adapter or the model that comes of it."""

import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from tometune.common.distributed import by_first, is_first
from tometune.common.errors import UserError
from tometune.common.seeding import seed_everything
from tometune.common.signals import Stopped, stop_signals
from tometune.config.root import Config
from tometune.data.tokens import Tokens
from tometune.models.full import published
from tometune.models.packed_attention import training_attention
from tometune.models.saved import ADAPTER, WHOLE
from tometune.models.source import locate
from tometune.training.arguments import arguments
from tometune.training.batches import Collator, Training
from tometune.training.checkpoints import last_checkpoint, save_adapter, save_whole, step_of
from tometune.training.cuda_graph import GraphError, compiled_layers, graph_for, graphed
from tometune.training.memory import Room, choose_room
from tometune.training.metrics import Curves, Meter, OnLog
from tometune.training.outcome import TrainResult, no_room, plan, result_of
from tometune.training.progress import progress_callbacks
from tometune.training.steps import Step, divisors, effective_batch, sizes
from tometune.training.storage import check_disk
from tometune.training.trainer import LogLastStep, MeteredTrainer, StopAfterStep

log = logging.getLogger(__name__)


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
    """Train what is trainable, from the last whole checkpoint if there is one, and save it.

    An adapter is saved under `folder/adapter`. With `lora=none` the whole model is saved under `folder/model`, in the
    type of the arithmetic.

    Where the GPU runs out of memory although the micro-batch was measured to fit, the training goes on once from its
    last checkpoint with half the micro-batch; what a step is stays the same.

    Args:
        model: a `PeftModel` whose adapter was just made from its seed; with `lora=none` a model in float32.
        tokenizer: for padding.
        tokens: rows with labels.
        config: `trainer`, and `seeds.order` and `seeds.adapter` (dropout).
        folder: the run's folder; gets `checkpoints/`, `metrics.jsonl`, `adapter/` or `model/`.
        on_log: takes the metrics of each logging step.
        cache: remembers what fits.
        unsloth: whether the model is Unsloth's.

    Raises:
        Stopped: SIGTERM or SIGHUP came; a checkpoint was saved.
        SaveError: the disk is full.
        UserError: the loss is no longer a number, or not even one row fits into the GPU.
    """
    training = Training(model, tokenizer, tokens, config, folder, on_log, unsloth)
    if training.whole:  # before hours of training: the hub can be gone after them
        training.published = published(locate(config.model, cache))
    with training_attention(model, None if unsloth else training.attention):
        training.graphed = graphed(training)
        if training.graphed:
            try:
                with compiled_layers(model):
                    return _fit(training, cache)
            except GraphError as error:
                if config.trainer.cuda_graph is True:
                    raise UserError(f"trainer.cuda_graph=true: {error}; set trainer.cuda_graph=false") from error
                log.warning("trainer.cuda_graph=auto: kernel by kernel, for a graph cannot be made (%s)", error)
                training.graphed = False
        return _fit(training, cache)


def _fit(training: Training, cache: Path) -> TrainResult:
    """Find what fits and train; once more with half of it where it did not fit after all."""
    model, config = training.model, training.config
    fresh = {}
    if not training.whole or model.device.type == "cuda":  # a CPU does not say that it is full; a copy would fill it
        trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
        fresh = {name: weight.detach().cpu().clone() for name, weight in trained}
    room = choose_room(lambda step, again: _trainer(training, step, again), training, sizes(config), cache)
    try:
        return _train(training, room)
    except torch.OutOfMemoryError:
        if room.micro_batch == 1:
            raise no_room(room) from None
    # Only here has the error let go of what the pass had allocated.
    room = _smaller(training, room, fresh)
    try:
        return _train(training, room)
    except torch.OutOfMemoryError:
        raise no_room(room) from None


def _smaller(training: Training, room: Room, fresh: Mapping[str, torch.Tensor]) -> Room:
    """Return room for half the micro-batch, or the next below that makes a whole step; weights are as they were."""
    gc.collect()
    torch.cuda.empty_cache()
    size = next(size for size in divisors(training.config) if size <= room.micro_batch // 2)
    log.warning("the GPU ran out of memory; once more with trainer.micro_batch=%d, same steps", size)
    with torch.no_grad():
        for name, weight in training.model.named_parameters():
            if name in fresh:
                weight.copy_(fresh[name])
    return Room(size, room.gradient_checkpointing, room.memory_bytes)


def _trainer(
    training: Training, step: Step, checkpointing: bool, meter: Meter | None = None, stop: Any = None
) -> MeteredTrainer:
    """Return TRL's trainer over this training, with the trained weights as they were."""
    model, config = training.model, training.config
    held = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    meter = meter or Meter()
    graph = graph_for(training, step.micro_batch) if training.graphed and not checkpointing else None
    trainer = MeteredTrainer(
        model=model,
        args=arguments(config, training.dtype, training.checkpoints, step, checkpointing, training.unsloth),
        train_dataset=training.rows,
        data_collator=Collator(
            training.tokenizer.pad_token_id,
            padding_free=config.trainer.packing,
            packed=training.packed,
            fits=graph.fits if graph else None,
        ),
        processing_class=training.tokenizer,
        callbacks=[*([stop] if stop else []), LogLastStep(), *progress_callbacks()],
        meter=meter,
        curves=Curves(training.folder / "metrics.jsonl", meter, training.on_log),
        fused_loss=training.unsloth,
        graph=graph,
    )
    trainer.remove_callback(PrinterCallback)
    for name, weight in model.named_parameters():  # over a 4-bit base, TRL makes the adapter bfloat16, which
        if name in held:  # rounds AdamW's small steps away and cannot be trained in fp16
            weight.data = held[name]
    return trainer


def _train(training: Training, room: Room) -> TrainResult:
    """Run the loop with what fits, and save what was trained."""
    config = training.config
    checkpoint = by_first(lambda: last_checkpoint(training.checkpoints))
    meter = Meter.load(checkpoint) if checkpoint else Meter()
    seed_everything(config.seeds.adapter)
    step = Step(effective_batch(config), room.micro_batch)
    stop = StopAfterStep()
    with stop_signals(stop.tell):
        trainer = _trainer(training, step, room.gradient_checkpointing, meter, stop)
        if is_first():
            trainer.curves.rewind(step_of(checkpoint) if checkpoint else 0)
        plan(training, step, checkpoint)
        by_first(lambda: check_disk(training))
        meter.start()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.signal:
            log.warning("told to stop: step %d is saved", trainer.state.global_step)
            raise Stopped(stop.signal)
    meter.rates()
    by_first(lambda: _save(training, trainer.accelerator.unwrap_model(trainer.model)))  # all of them read it next
    return result_of(training, room, step, trainer)


def _save(training: Training, model: Any) -> None:
    """Save the adapter, or the whole model."""
    if training.whole:
        save_whole(model, training.tokenizer, training.folder / WHOLE, training.dtype, training.published)
    else:
        save_adapter(model, training.folder / ADAPTER, training.config.model.id)
