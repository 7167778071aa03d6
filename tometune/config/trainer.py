"""Schema of the `trainer` group: optimisation, batches, checkpoints, by the names of transformers."""

from dataclasses import dataclass, field

from tometune.config.identity import NOT_IDENTITY


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

    dataloader_num_workers: int = field(default=0, metadata=NOT_IDENTITY)
    """Processes that collate batches; 0 collates in the training process."""

    logging_steps: int = field(default=10, metadata=NOT_IDENTITY)
    """Steps between two lines of the log and two points of the curves."""

    save_steps: int = field(default=200, metadata=NOT_IDENTITY)
    """Steps between two checkpoints; what a kill can cost."""

    save_total_limit: int = field(default=2, metadata=NOT_IDENTITY)
    """Checkpoints kept."""
