"""GPU memory: the micro-batch that fits, found by trying and remembered; and a rough estimate for plans.

Results do not depend on what is tried. A step covers the same rows whatever the micro-batch, so only the order in which
gradients are added differs (`tometune.training.steps`), and the generators are seeded after the last attempt. If the
memory runs out later, `sft` halves the micro-batch.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tometune.common.distributed import by_all, gather, processes
from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.common.integrity import defect
from tometune.config.model import Compute, LoraConfig
from tometune.config.trainer import TrainerConfig
from tometune.models.base_models import is_small
from tometune.models.lora_rounding import forget_inputs
from tometune.models.machine import free_memory
from tometune.models.source import ModelSource, parameters_to_train, quantized, without_weights
from tometune.training.batches import Training
from tometune.training.cuda_graph import capacity_for
from tometune.training.steps import Step, effective_batch, in_packs, micro_batches, state_bytes
from tometune.training.trainer import MeteredTrainer

log = logging.getLogger(__name__)

SPARE = 0.08  # share of the GPU's memory that an attempt leaves free, for fragmentation and the desktop
ROWS_ON_CPU = 4  # rows in one forward pass on a CPU, where more are no faster


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch that fits."""

    rows: int
    gradient_checkpointing: bool
    memory_bytes: int | None = None  # peak memory to expect; None on a CPU


def choose(build: Callable[[Step, bool], MeteredTrainer], training: Training) -> MicroBatch:
    """Return the micro-batch: the one that is set, or the largest one that fits this GPU.

    `build` makes the trainer of a step, with or without gradient checkpointing.

    Raises:
        UserError: not even one row fits.
    """
    trainer = training.inputs.trainer
    sizes = micro_batches(trainer)
    if not torch.cuda.is_available():
        most = 1 if in_packs(trainer) else ROWS_ON_CPU  # one pack keeps a CPU busy
        rows = sizes[0] if len(sizes) == 1 else next(size for size in sizes if size <= most)
        return MicroBatch(rows, trainer.gradient_checkpointing is True)
    remembered = _remembered(training)
    if defect(remembered) is None:
        chosen = MicroBatch(**json.loads(remembered.read_text(encoding="utf-8"))["found"])
    else:
        largest = by_all(lambda: largest_that_fits(lambda *size: _attempt(build, training, *size), sizes, trainer))
        # Processes whose GPUs have less memory left decide for all.
        chosen = min(gather([largest]), key=lambda size: (not size.gradient_checkpointing, size.rows))
        remember(training, chosen)
        torch.cuda.reset_peak_memory_stats()  # run.json records the training's peak, not that of the search
    asked = "" if trainer.micro_batch == "auto" else " (set)"
    if asked and chosen.rows != trainer.micro_batch:
        asked = f" (lowered from {trainer.micro_batch}, to divide the rows of one process)"
    log.info(
        "micro-batch: %d rows%s, activations %s, about %.1f GB of the GPU's %.1f GB",
        *(chosen.rows, asked),
        "recomputed" if chosen.gradient_checkpointing else "kept",
        *((chosen.memory_bytes or 0) / 1e9, torch.cuda.mem_get_info()[1] / 1e9),
    )
    return chosen


def largest_that_fits(attempt: Callable[[int, bool], int], sizes: Sequence[int], trainer: TrainerConfig) -> MicroBatch:
    """Try micro-batches, the largest first; with `auto`, activations are recomputed only if one row needs it.

    `attempt` makes a pass over so many full rows, with or without gradient checkpointing, and returns its peak memory
    in bytes.

    Raises:
        UserError: none fits; the line names the settings to change.
    """
    wanted = trainer.gradient_checkpointing
    for checkpointing in [False, True] if wanted == "auto" else [bool(wanted)]:
        for rows in sizes:
            try:
                return MicroBatch(rows, checkpointing, attempt(rows, checkpointing))
            except torch.OutOfMemoryError:
                log.info("micro-batch of %d rows: does not fit into the GPU's memory", rows)
            free_memory()  # only after the except block, when nothing refers to the failed pass any more
    rows = sizes[-1]
    raise UserError(
        f"trainer.max_length: the model and {rows} row{'s' if rows > 1 else ''} of this length do not fit into the "
        "GPU's free memory; lower trainer.max_length"
        + (", set trainer.micro_batch=auto" if rows > 1 else "")
        + ("" if wanted in ("auto", True) else ", set trainer.gradient_checkpointing=auto")
        + ", or use a smaller model"
    )


def _attempt(build: Callable[[Step, bool], MeteredTrainer], training: Training, rows: int, checkpointing: bool) -> int:
    """Make a pass over the longest possible rows with labels throughout, next to the memory of the optimiser's states.

    A pack holds four conversations.
    """
    model, trainer = training.model, training.inputs.trainer
    free_memory()
    weights, embeddings = trainable(model), embedded(model)
    states = state_bytes(trainer.optim, weights, embeddings)
    if processes() > 1:
        states += 4 * weights  # the gradients once more, to be added: in buckets, or as one tensor
    spare = int(SPARE * torch.cuda.mem_get_info()[1])
    reserved = torch.empty(spare + states, dtype=torch.uint8, device=model.device)
    length = trainer.max_length
    ids = [(7 * position) % min(1000, model.config.vocab_size) for position in range(length)]
    row = {"input_ids": ids, "labels": ids}
    if "seq_lengths" in training.rows.column_names:
        row["seq_lengths"] = [length // 4] * 3 + [length - 3 * (length // 4)]
    torch.cuda.reset_peak_memory_stats()
    try:
        build(Step(effective_batch(trainer), rows), checkpointing).full_pass([dict(row) for _ in range(rows)])
        if trainer.optim == "adamw_torch":  # its step takes as much again as the gradients, by PyTorch's `foreach`
            torch.empty(weights, dtype=torch.float32, device=model.device)
        return int(torch.cuda.max_memory_allocated()) - spare
    except torch.OutOfMemoryError:
        if training.cuda_graph:
            torch.compiler.reset()  # or the next size is compiled for shapes of any size, with other kernels
        raise
    finally:
        del reserved
        forget_inputs(model)
        model.zero_grad(set_to_none=True)


def trainable(model: Any) -> int:
    """Return the number of trained weights."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def embedded(model: Any) -> int:
    """Return how many of the trained weights are embeddings."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(table.numel() for table in tables if table.requires_grad)


def remember(training: Training, found: MicroBatch) -> None:
    """Keep a micro-batch for later trainings of the same kind on this kind of GPU."""
    path = _remembered(training)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _key(training) | {"found": asdict(found)})


def _remembered(training: Training) -> Path:
    key = sha256(json.dumps(_key(training)).encode()).hexdigest()[:20]
    return training.inputs.cache / "micro_batches" / f"{key}.json"


def _key(training: Training) -> dict[str, Any]:
    """Return everything that memory depends on."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    model, lora, trainer = training.inputs.source.config, training.inputs.lora, training.inputs.trainer
    adapter = f"{lora.r} {sorted(lora.target_modules)} {lora.use_dora} {lora.lora_dropout}" if lora.enabled else "none"
    sizes = micro_batches(trainer)
    return {
        **{"gpu": gpu.name, "memory": gpu.total_memory, "torch": torch.__version__, "processes": processes()},
        **{"model": f"{model.id} {model.quantization} {training.dtype} {model.compute}", "adapter": adapter},
        "rows": f"{trainer.max_length} {trainer.packing} {sizes}",
        "kernels": f"deterministic {trainer.deterministic}, joined adapters",
        "step": f"{training.attention} {trainer.gradient_checkpointing} {trainer.loss_type} {trainer.optim}",
        "graph": str(capacity_for(training, sizes[0])) if training.cuda_graph else "none",
        # The process that scores keeps its own copy while Unsloth's process trains a small model.
        **({"also": "the base model in another process"} if training.unsloth and is_small(training.model) else {}),
    }


def estimate(source: ModelSource, trainer: TrainerConfig, lora: LoraConfig) -> int:
    """Return the peak GPU memory of one row per forward pass in bytes, from the model's config alone; good to a third.

    The micro-batch `auto` takes more where the GPU has it.
    """
    model = without_weights(source.location, source.revision)
    config, weights, trained = model.config, model.num_parameters(), parameters_to_train(source, lora)
    base = 0
    if lora.enabled:
        table = config.vocab_size * config.hidden_size
        base = 2 * table + weights // 2 if quantized(source.config) else 2 * weights
        copies = {Compute.fp8: 2, Compute.fp8_backward: 1}  # of each layer in 8 bits, one of them transposed
        base += copies.get(source.config.compute, 0) * (weights - table * (1 if config.tie_word_embeddings else 2))
    # Kept for the backward pass, per layer and token: about 8 hidden and 4 intermediate vectors in 16 bits. It comes to
    # the 58 GB that were measured for Llama-3.2-3B with 16,384 tokens (docs/LOG.md).
    kept = 2 * (8 * config.hidden_size + 4 * config.intermediate_size)
    full_layers = 1 if trainer.gradient_checkpointing is True else config.num_hidden_layers
    activations = trainer.max_length * (full_layers * kept + 2 * config.num_hidden_layers * config.hidden_size)
    logits = 12 * config.vocab_size * (trainer.max_length if trainer.loss_type != "chunked_nll" else 256)
    peak: int = base + 12 * trained + state_bytes(trainer.optim, trained) + activations + logits
    return peak
