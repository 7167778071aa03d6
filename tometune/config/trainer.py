"""Schema of the `trainer` group: optimisation, batches, checkpoints, by the names of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tometune.config.validators import NOT_IDENTITY, at_least, one_of

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial")
"""Schedules of transformers that need no further argument."""

OPTIMISERS = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_torch_8bit", "adamw_8bit", "adamw_bnb_8bit"),
    *("paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit"),
    *("paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw"),
)
"""Optimisers of transformers that need no further argument."""

LOSSES = ("chunked_nll", "nll", "dft")
"""Losses of TRL's SFTTrainer."""


@dataclass
class TrainerConfig:
    """Arguments of the supervised fine-tuning loop."""

    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""

    lr_scheduler_type: str = "linear"
    """Shape of the schedule after warm-up: `linear`, `cosine`, `constant`, `constant_with_warmup`."""

    warmup_steps: float = 5.0
    """Steps of linear warm-up; a value below 1 is a share of all steps."""

    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

    optim: str = "adamw_torch"
    """Optimiser by transformers' name, e.g. `adamw_torch`, `adamw_8bit`."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""

    num_train_epochs: float = 1.0
    """Passes over the mix; `max_steps` wins where it is set."""

    max_steps: int | None = None
    """Optimiser steps in all; null trains `num_train_epochs`."""

    tokens_per_step: int = 16_384
    """Tokens of one optimiser step over all processes, as whole packs of `max_length`; needs `packing`."""

    conversations_per_step: int | None = None
    """Conversations of one optimiser step over all processes; wins over `tokens_per_step` where it is set."""

    micro_batch: int | str = field(default="auto", metadata=NOT_IDENTITY)
    """Packs, or conversations, in one forward pass on one device; `auto` is as many as fit. A step stays what it is."""

    max_length: int = 2048
    """Tokens a row may have; longer rows are cut at the end, and how many were cut is reported."""

    packing: bool = True
    """No padding: conversations lie end to end, in packs of `max_length` where steps are counted in tokens, and
    attention never crosses from one to another."""

    gradient_checkpointing: bool | str = field(default="auto", metadata=NOT_IDENTITY)
    """Recompute activations in the backward pass: less memory, a quarter slower. `auto`: only where they do not fit."""

    loss_type: str = "chunked_nll"
    """TRL's loss: `chunked_nll` projects only trained tokens onto the vocabulary, `nll` all; same mathematics."""

    cuda_graph: bool | str = field(default="auto", metadata=NOT_IDENTITY)
    """Compile the layers and play a pass back as one CUDA graph; `auto`: of models under 1 B parameters that
    transformers trains in packs on a GPU, where that is three to four times as fast."""

    dataloader_num_workers: int = field(default=0, metadata=NOT_IDENTITY)
    """Processes that collate batches; 0 collates in the training process."""

    logging_steps: int = field(default=10, metadata=NOT_IDENTITY)
    """Steps between two lines of the log and two points of the curves."""

    save_steps: int = field(default=200, metadata=NOT_IDENTITY)
    """Steps between two checkpoints; what a kill can cost."""

    save_total_limit: int = field(default=2, metadata=NOT_IDENTITY)
    """Checkpoints kept."""


def trainer_problems(trainer: TrainerConfig) -> Iterator[str]:
    """Yield the problems of the `trainer` group."""
    yield from one_of("trainer.lr_scheduler_type", trainer.lr_scheduler_type, SCHEDULES)
    yield from one_of("trainer.optim", trainer.optim, OPTIMISERS)
    yield from one_of("trainer.loss_type", trainer.loss_type, LOSSES)
    counts = (
        *("max_steps", "tokens_per_step", "conversations_per_step", "max_length"),
        *("logging_steps", "save_steps", "save_total_limit"),
    )
    yield from at_least(1, {f"trainer.{name}": vars(trainer)[name] for name in counts})
    positive_or_zero = ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers")
    yield from at_least(0, {f"trainer.{name}": vars(trainer)[name] for name in positive_or_zero})
    for name in ("learning_rate", "num_train_epochs"):
        if vars(trainer)[name] <= 0:
            yield f"trainer.{name}={vars(trainer)[name]}: not above 0"
    yield from _step_problems(trainer)
    warmup, steps = trainer.warmup_steps, trainer.max_steps
    if warmup > 1 and not warmup.is_integer():
        yield f"trainer.warmup_steps={warmup}: neither a whole number of steps nor a share of them below 1"
    if steps is not None and warmup >= max(1, steps):
        yield (
            f"trainer.warmup_steps={warmup:g}: not below trainer.max_steps={steps}, so the peak learning rate is never "
            "used; lower trainer.warmup_steps (0.1 is a tenth of the steps) or raise trainer.max_steps"
        )


def _step_problems(trainer: TrainerConfig) -> Iterator[str]:
    """Yield the problems of what a step is made of."""
    micro = trainer.micro_batch
    if micro != "auto" and (isinstance(micro, str) or micro < 1):
        yield f"trainer.micro_batch={micro}: neither auto nor 1 or more"
    for name in ("gradient_checkpointing", "cuda_graph"):
        value = vars(trainer)[name]
        if value != "auto" and not isinstance(value, bool):
            yield f"trainer.{name}={value}: one of auto, true, false"
    if trainer.conversations_per_step is not None or trainer.max_length < 1 or trainer.tokens_per_step < 1:
        return
    if not trainer.packing:
        yield (
            "trainer.packing=false: steps are then counted in conversations; set trainer.conversations_per_step, e.g. 8"
        )
    elif trainer.tokens_per_step % trainer.max_length:
        packs = max(1, round(trainer.tokens_per_step / trainer.max_length))
        yield (
            f"trainer.tokens_per_step={trainer.tokens_per_step}: no whole number of packs of "
            f"trainer.max_length={trainer.max_length}; e.g. {packs * trainer.max_length}"
        )
