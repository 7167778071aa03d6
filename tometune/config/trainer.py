"""Schema of the `trainer` group: optimisation, batches and checkpoints, with the names that transformers uses."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tometune.config.validators import NOT_IDENTITY, SINCE_DEFAULT, SWITCH, at_least, checked, one_of, valid_if

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial")
"""Schedules of transformers without further arguments."""

OPTIMISERS = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_torch_8bit", "adamw_8bit", "adamw_bnb_8bit"),
    *("paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit"),
    *("paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw"),
)
"""Optimisers of transformers without further arguments."""

LOSSES = ("chunked_nll", "nll", "dft")  # losses of TRL's SFTTrainer; Unsloth has the NLL alone


@dataclass
class TrainerConfig:
    """Arguments of the supervised fine-tuning loop."""

    learning_rate: float = field(default=2e-4, metadata=valid_if(lambda value: value > 0, "not above 0"))
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = field(default="linear", metadata=checked(one_of(SCHEDULES)))
    """Schedule after warm-up: `linear`, `cosine`, `constant_with_warmup`; `constant` has no warm-up."""
    warmup_steps: float = field(default=5.0, metadata=at_least(0))
    """Steps of linear warm-up, or below 1 the share of all steps."""
    weight_decay: float = field(default=0.01, metadata=at_least(0))
    """Decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    optim: str = field(default="adamw_torch", metadata=checked(one_of(OPTIMISERS)))
    """Optimiser, by its name in transformers, e.g. `adamw_torch`, `adamw_8bit`."""
    max_grad_norm: float = field(default=1.0, metadata=at_least(0))
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    num_train_epochs: float = field(default=1.0, metadata=valid_if(lambda value: value > 0, "not above 0"))
    """Passes over the mix; ignored if `max_steps` or `max_tokens` is set."""
    max_steps: int | None = field(default=None, metadata=at_least(1))
    """Total optimiser steps; null trains for `num_train_epochs`."""
    max_tokens: int | None = field(default=None, metadata=SINCE_DEFAULT | at_least(1))
    """Train for about so many tokens, to the nearest step: a small mix is repeated, a large one stops early."""
    tokens_per_step: int = field(default=16_384, metadata=at_least(1))
    """Tokens per optimiser step over all processes, in whole packs of `max_length`; needs `packing`."""
    conversations_per_step: int | None = field(default=None, metadata=at_least(1))
    """Conversations per optimiser step over all processes; replaces `tokens_per_step` if set."""
    micro_batch: int | str = field(
        default="auto",
        metadata=NOT_IDENTITY
        | valid_if(lambda n: n == "auto" or (isinstance(n, int) and n >= 1), "neither auto nor 1 or more"),
    )
    """Packs or conversations in one forward pass on one device; `auto` is as many as fit. Steps do not depend on it."""
    max_length: int = field(default=2048, metadata=at_least(1))
    """Maximum tokens of a row; longer rows are truncated at the end and counted."""
    packing: bool = True
    """Join conversations without padding, in packs of `max_length` if steps are counted in tokens. Attention never
    crosses from one conversation to another."""
    gradient_checkpointing: bool | str = field(default="auto", metadata=NOT_IDENTITY | SWITCH)
    """Recompute activations in the backward pass: less memory, a quarter slower. `auto`: only if they do not fit."""
    loss_type: str = field(default="chunked_nll", metadata=checked(one_of(LOSSES)))
    """TRL's loss: `chunked_nll` projects only trained tokens onto the vocabulary, `nll` all; same mathematics. `dft`
    weights each token's loss by its probability (Wu et al. 2025, arXiv:2508.05629)."""
    cuda_graph: bool | str = field(default="auto", metadata=NOT_IDENTITY | SWITCH)
    """Compile the layers and replay each pass as one CUDA graph. `auto`: wherever transformers trains an adapter in
    packs on a GPU in bfloat16, also over 4 bits."""
    deterministic: bool = field(default=True, metadata=SINCE_DEFAULT)
    """On a GPU, use kernels that give the same bytes in every run; on a CPU all of them do."""
    dataloader_num_workers: int = field(default=0, metadata=NOT_IDENTITY | at_least(0))
    """Processes that collate batches; 0 uses the training process."""
    logging_steps: int = field(default=10, metadata=NOT_IDENTITY | at_least(1))
    """Steps between two log lines and points of the curves."""
    eval_steps: int | None = field(default=None, metadata=NOT_IDENTITY | at_least(1))
    """Steps between two values of `eval/loss`, the loss on at most 200 held-out rows, or else on references of the
    tasks; null computes none. It changes no weight."""
    save_steps: int = field(default=200, metadata=NOT_IDENTITY | at_least(1))
    """Steps between two checkpoints: a kill can lose that many."""
    save_total_limit: int = field(default=2, metadata=NOT_IDENTITY | at_least(1))
    """Number of checkpoints to keep."""


def trainer_problems(trainer: TrainerConfig) -> Iterator[str]:
    """Yield the problems of the `trainer` group."""
    yield from _step_problems(trainer)
    warmup, steps = trainer.warmup_steps, trainer.max_steps
    if trainer.max_tokens is not None and steps is not None:
        yield f"trainer.max_tokens={trainer.max_tokens}: trainer.max_steps={steps} sets the steps, too; set one to null"
    if warmup > 1 and not warmup.is_integer():
        yield f"trainer.warmup_steps={warmup}: neither a whole number of steps nor a share of them below 1"
    if steps is not None and warmup >= max(1, steps):
        yield (
            f"trainer.warmup_steps={warmup:g}: not below trainer.max_steps={steps}, so the peak learning rate is never "
            "used; lower trainer.warmup_steps (0.1 is a tenth of the steps) or raise trainer.max_steps"
        )
    if warmup and trainer.lr_scheduler_type == "constant":  # transformers ignores it without a word
        ignored = f"has no warm-up, so trainer.warmup_steps={warmup:g} is ignored"
        yield f"trainer.lr_scheduler_type=constant: {ignored}; set it to 0, or choose constant_with_warmup"


def _step_problems(trainer: TrainerConfig) -> Iterator[str]:
    if trainer.conversations_per_step is not None or trainer.max_length < 1 or trainer.tokens_per_step < 1:
        return
    if not trainer.packing:
        yield ("trainer.packing=false: counts steps in conversations; set trainer.conversations_per_step, e.g. 8")
    elif trainer.tokens_per_step % trainer.max_length:
        packs = max(1, round(trainer.tokens_per_step / trainer.max_length))
        yield (
            f"trainer.tokens_per_step={trainer.tokens_per_step}: not a whole number of packs of "
            f"trainer.max_length={trainer.max_length}; e.g. {packs * trainer.max_length}"
        )
