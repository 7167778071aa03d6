"""Supervised fine-tuning with TRL's trainer: memory, resuming, and saving the adapter or the model."""

import json
import logging
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PrinterCallback
from trl.trainer import sft_trainer

from tometune.common.distributed import by_first, is_first, processes
from tometune.common.errors import UserError
from tometune.common.process import Stopped, stop_signals
from tometune.common.seeding import seed_everything, use_deterministic_kernels, without_deterministic_kernel
from tometune.models.fp8 import fp8_products
from tometune.models.load import author_configs, restore
from tometune.models.lora_rounding import forget_inputs
from tometune.models.machine import free_memory
from tometune.models.packed_attention import training_attention
from tometune.models.source import ADAPTER, WHOLE
from tometune.training import memory
from tometune.training.batches import Collator, Training, TrainingInputs
from tometune.training.checkpoints import check_disk, last_checkpoint, save_adapter, save_full_model, step_of
from tometune.training.cuda_graph import GraphError, can_use_graph, compiled_layers, graph_for
from tometune.training.memory import MicroBatch
from tometune.training.metrics import CURVES, PENDING, Curves, Meter, OnLog, peak_memory_bytes
from tometune.training.steps import Step, divisors, effective_batch, in_packs, steps_of
from tometune.training.trainer import MeteredTrainer, StepCallback, arguments

log = logging.getLogger(__name__)

CPU_CHUNK = 32
"""Tokens that TRL projects onto the vocabulary at a time. It fills the last chunk up; with its 256, a small step would
mostly compute filling."""


def fit(model: Any, tokenizer: Any, inputs: TrainingInputs, on_log: OnLog, unsloth: bool = False) -> dict[str, Any]:
    """Train, resuming from the last complete checkpoint, save the result, and return the entry `train` of run.json.

    The model is a `PeftModel` with a fresh adapter, which is saved in `<folder>/adapter`, or with `lora=none` a model
    in float32, which is saved in `<folder>/model` in the dtype of the arithmetic. If the GPU runs out of memory, the
    training continues from its last checkpoint with half the micro-batch; steps stay the same. `on_log` is called with
    the metrics of each logging step.

    Raises:
        Stopped: SIGTERM or SIGHUP was received, and a checkpoint was saved.
        SaveError: the disk is full.
        UserError: the loss is not finite, or not even one row fits into the GPU.
    """
    training = Training(model, tokenizer, inputs, on_log, unsloth)
    if training.full:  # needed at the end, but the hub may be unreachable after hours of training
        training.author_configs = author_configs(inputs.source)
    try:
        training.cuda_graph = can_use_graph(training)
        use_deterministic_kernels(inputs.trainer.deterministic, strict=True)
        fresh = {}
        if not training.full:  # small; a full model is read from its files again
            weights = model.named_parameters()
            fresh = {name: weight.detach().cpu().clone() for name, weight in weights if weight.requires_grad}
        logged = None
        while True:
            if training.reason and training.attention != logged:
                logged = training.attention
                log.info(
                    *("attention over packs: %s (%s)", logged),
                    training.reason if logged == training.kernel else "compiled layers",
                )
            try:
                with (
                    training_attention(model, None if unsloth else training.attention),
                    compiled_layers(model) if training.cuda_graph else nullcontext(),
                    fp8_products(model, inputs.source.config.compute),
                ):
                    return _train_within_memory(training, fresh)
            except RuntimeError as error:
                _without_the_cause(training, error)
            _start_again(training, fresh)
    finally:
        use_deterministic_kernels(inputs.trainer.deterministic)


def _without_the_cause(training: Training, error: RuntimeError) -> None:
    """Turn off the CUDA graph or the strict choice of kernels, if the first pass showed that it is not possible.

    Raises:
        RuntimeError: this error, if it has another cause.
        UserError: the graph was asked for.
    """
    if isinstance(error, GraphError):
        if training.inputs.trainer.cuda_graph is True:
            raise UserError(f"trainer.cuda_graph=true: {error}; set trainer.cuda_graph=false") from error
        log.warning("CUDA graph off: %s", error)
        training.cuda_graph = False
        return
    training.nondeterministic = without_deterministic_kernel(error)
    if training.nondeterministic is None:
        raise error
    log.warning("%s has no deterministic kernel: two runs of this command can differ", training.nondeterministic)
    use_deterministic_kernels(strict=False)


def _start_again(training: Training, fresh: dict[str, torch.Tensor]) -> None:
    """Free the memory of an interrupted pass, and give the weights their first values.

    It must not be called in an except block, whose error refers to that pass.
    """
    forget_inputs(training.model)
    free_memory()
    # A mark of accelerate. With it, the next trainer would not connect the model of several processes.
    vars(training.model).pop("_is_accelerate_prepared", None)
    if not training.full:
        training.model.load_state_dict(fresh, strict=False)
    elif last_checkpoint(training.checkpoints) is None:
        restore(training.model, training.inputs.source)


def _train_within_memory(training: Training, fresh: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Train with the micro-batch that fits; halve it whenever the GPU runs out of memory all the same."""
    trainer = training.inputs.trainer
    size = memory.choose(lambda step, checkpointing: build_trainer(training, step, checkpointing), training)
    while True:
        try:
            return _train_and_save(training, size)
        except torch.OutOfMemoryError:
            half = [rows for rows in divisors(trainer) if rows <= size.rows // 2]
            if not half:
                hint = "" if size.gradient_checkpointing else "set trainer.gradient_checkpointing=true, or "
                raise UserError(
                    f"trainer.micro_batch={size.rows}: the GPU ran out of memory while training; {hint}lower "
                    "trainer.max_length, and run the same command again to resume from the last checkpoint"
                ) from None
        size = replace(size, rows=half[0])
        if trainer.micro_batch == "auto" and torch.cuda.is_available():
            memory.remember(training, size)
        if processes() > 1:  # the others are in the middle of the step, and torchrun ends them
            again = "" if trainer.micro_batch == "auto" else f" with trainer.micro_batch={size.rows}"
            log.error("out of memory; run the same command again%s to resume from the last checkpoint", again)
            raise torch.OutOfMemoryError("a GPU of one process ran out of memory")
        log.warning("out of memory; continuing with trainer.micro_batch=%d, steps stay the same", size.rows)
        _start_again(training, fresh)
        if training.cuda_graph:
            torch.compiler.reset()


def _train_and_save(training: Training, size: MicroBatch) -> dict[str, Any]:
    inputs, model, rows = training.inputs, training.model, len(training.rows)
    weights, counts = memory.trainable(model), inputs.tokens.counts
    checkpoint = by_first(lambda: last_checkpoint(training.checkpoints))
    meter = Meter.load(checkpoint) if checkpoint else Meter()
    seed_everything(inputs.seeds.adapter)
    step = Step(effective_batch(inputs.trainer), size.rows)
    callback = StepCallback(meter)
    with stop_signals(callback.request_stop):
        trainer = build_trainer(training, step, size.gradient_checkpointing, meter, callback)
        if is_first():
            trainer.curves.rewind(step_of(checkpoint) if checkpoint else 0, checkpoint)
        if training.full:
            log.info("full fine-tuning: %s weights in float32", f"{weights:,}")
            by_first(lambda: check_disk(training, weights, memory.embedded(model)))
        log.info(
            "training: %s %s of %s tokens (%s trained), %d per step, %d at a time, %d steps of %d per epoch%s",
            *(f"{rows:,}", "packs" if in_packs(inputs.trainer) else "rows", f"{counts.tokens:,}"),
            *(f"{counts.trainable_tokens:,}", step.rows, step.micro_batch, steps_of(inputs.trainer, rows)),
            *(math.ceil(rows / step.rows), f", resuming from {checkpoint.name}" if checkpoint else ""),
        )
        if checkpoint and (checkpoint / PENDING).exists():  # older checkpoints have none
            trainer.pending = json.loads((checkpoint / PENDING).read_text(encoding="utf-8"))
        meter.start()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if callback.signal:
            log.warning("stop requested; checkpoint saved at step %d", trainer.state.global_step)
            raise Stopped(callback.signal)
    meter.rates()
    # Without accelerate's autocast, so that scores are those of the saved adapter.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if training.full:
        folder, configs = inputs.folder / WHOLE, training.author_configs
        by_first(lambda: save_full_model(trained, training.tokenizer, folder, training.dtype, configs))
    else:
        by_first(lambda: save_adapter(trained, inputs.folder / ADAPTER, inputs.source.config.id))
    totals, peak = meter.totals, peak_memory_bytes()
    if size.memory_bytes is not None:
        log.info("peak memory: %.1f GB, expected %.1f GB", peak / 1e9, size.memory_bytes / 1e9)
    return {
        "kind": "full" if training.full else "lora",
        "trainable_parameters": weights,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.epochs, 4),
        "effective_batch": step.rows,
        "micro_batch": step.micro_batch,
        "gradient_checkpointing": size.gradient_checkpointing,
        "attention": training.attention,
        "deterministic": training.inputs.trainer.deterministic and training.nondeterministic is None,
        "nondeterministic": training.nondeterministic,
        **asdict(totals),
        "seconds": round(totals.seconds, 3),
        "tokens_per_second": round(totals.tokens / totals.seconds, 1) if totals.seconds else 0.0,
        "peak_memory_bytes": peak,
        "estimated_memory_bytes": size.memory_bytes,
        "final_loss": trainer.curves.last_loss,
    }


def build_trainer(
    training: Training,
    step: Step,
    checkpointing: bool,
    meter: Meter | None = None,
    callback: StepCallback | None = None,
) -> MeteredTrainer:
    """Return TRL's trainer; the trained weights stay as they are."""
    model, inputs = training.model, training.inputs
    trained = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    if model.device.type == "cpu":
        sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE = CPU_CHUNK
    graph = graph_for(training, step.micro_batch) if training.cuda_graph and not checkpointing else None
    trainer = MeteredTrainer(
        model=model,
        args=arguments(training, step, checkpointing),
        train_dataset=training.rows,
        data_collator=Collator(
            training.tokenizer.pad_token_id,
            padding_free=inputs.trainer.packing,
            packed=training.packed,
            capacity=graph.capacity if graph else None,
        ),
        processing_class=training.tokenizer,
        callbacks=[callback or StepCallback(Meter())],
        curves=Curves(inputs.folder / CURVES, meter or Meter(), training.on_log, training.dtype is torch.float16),
        fused_loss=training.unsloth,
        graph=graph,
        loss_rows=inputs.loss_rows,
        kernel=training.kernel if graph else None,
    )
    trainer.remove_callback(PrinterCallback)
    # Over a 4-bit base TRL makes the adapter bfloat16, which rounds away AdamW's small steps and fails with fp16.
    for weight, data in trained:
        weight.data = data
    return trainer
