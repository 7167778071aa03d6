"""Optimiser steps: their size, their number, and the optimiser; imports nothing that trains.

A step covers a fixed number of packs (`trainer.tokens_per_step`) or conversations (`trainer.conversations_per_step`)
over all processes. How many of them fit into one forward pass only decides in how many parts a step is computed.
"""

import math
from dataclasses import dataclass, replace
from importlib import util

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.config.trainer import TrainerConfig

PACKAGES = (
    (("adamw_8bit", "adamw_bnb_8bit", "paged_", "ademamix", "lion_"), "bitsandbytes", 'pip install "tometune[gpu]"'),
    (("adamw_torch_4bit", "adamw_torch_8bit"), "torchao", "pip install torchao"),
    (("stable_adamw",), "optimi", "pip install torch-optimi"),
)
"""Prefixes of optimisers, the package that implements them, and how to install it."""

STATE_BYTES = {
    **{"adamw_8bit": 2, "adamw_bnb_8bit": 2, "ademamix_8bit": 3, "lion_8bit": 1},
    **{"adamw_torch_8bit": 2, "adamw_torch_4bit": 1},
    **{"ademamix": 12, "lion_32bit": 4, "adagrad": 4, "rmsprop": 4, "adafactor": 1, "sgd": 0},
}
"""Bytes per trained weight. AdamW, and every other optimiser, keeps two float32 numbers: 8 bytes."""


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    rows: int  # packs or conversations, over all processes
    micro_batch: int  # packs or conversations in one forward pass on one device

    @property
    def accumulation(self) -> int:
        """Forward passes per step and process."""
        return self.rows // (self.micro_batch * processes())


def in_packs(trainer: TrainerConfig) -> bool:
    """Tell whether rows are joined into packs of `max_length` tokens, which steps then count."""
    return trainer.packing and trainer.conversations_per_step is None


def effective_batch(trainer: TrainerConfig) -> int:
    """Return the rows (packs or conversations) of one step; a `UserError` if the processes cannot share them evenly."""
    rows = trainer.conversations_per_step or trainer.tokens_per_step // trainer.max_length
    if rows % processes():
        key = "conversations_per_step" if trainer.conversations_per_step else "tokens_per_step"
        unit = "packs" if in_packs(trainer) else "conversations"
        raise UserError(
            f"trainer.{key}={getattr(trainer, key)}: {rows} {unit} per step cannot be divided among {processes()} "
            "processes; change the number of processes or the size of a step"
        )
    return rows


def divisors(trainer: TrainerConfig) -> list[int]:
    """Return the micro-batches that divide one process's share of a step, the largest first."""
    share = effective_batch(trainer) // processes()
    return [size for size in range(share, 0, -1) if share % size == 0]


def micro_batches(trainer: TrainerConfig) -> list[int]:
    """Return the micro-batches to choose from, the largest first; only one if `trainer.micro_batch` sets it.

    With several processes, it is lowered to what divides the rows of one, so that presets for one GPU can be used.
    """
    possible = divisors(trainer)
    if trainer.micro_batch == "auto":
        return possible
    if processes() > 1:
        return [next(size for size in possible if size <= int(trainer.micro_batch))]
    if trainer.micro_batch not in possible:
        raise UserError(
            f"trainer.micro_batch={trainer.micro_batch}: does not divide the {possible[0]} rows per step of one "
            f"process; use one of {', '.join(map(str, reversed(possible)))}, or auto"
        )
    return [int(trainer.micro_batch)]


def steps_of(trainer: TrainerConfig, rows: int) -> int:
    """Return the number of optimiser steps over so many rows or packs."""
    per_epoch = math.ceil(rows / effective_batch(trainer))
    return trainer.max_steps or math.ceil(trainer.num_train_epochs * per_epoch)


def with_steps(trainer: TrainerConfig, rows: int, tokens: int) -> TrainerConfig:
    """Return the config with the `max_steps` that `max_tokens` means for so many rows or packs of so many tokens."""
    if trainer.max_tokens is None:
        return trainer
    per_epoch = math.ceil(rows / effective_batch(trainer))
    return replace(trainer, max_steps=max(1, round(trainer.max_tokens / tokens * per_epoch)))


def checkpoints_kept(trainer: TrainerConfig, steps: int) -> int:
    """Return how many checkpoints remain after so many steps; while one is being saved there is one more."""
    return min(trainer.save_total_limit, math.ceil(steps / trainer.save_steps))


def check_optimiser(trainer: TrainerConfig) -> None:
    """Raise a `UserError` unless the package behind `trainer.optim` is installed."""
    for prefixes, package, install in PACKAGES:
        if trainer.optim.startswith(prefixes) and util.find_spec(package) is None:
            fix = f"{install}, or set trainer.optim=adamw_torch"
            raise UserError(f"trainer.optim={trainer.optim}: needs {package}; {fix}")


def state_bytes(optim: str, weights: int, embeddings: int = 0) -> int:
    """Return the bytes of an optimiser's states for so many weights, some of which are embeddings."""
    name = optim.removeprefix("paged_")  # these use GPU memory as long as there is some
    per_weight = STATE_BYTES.get(name, 8)
    # transformers gives embeddings 32-bit states in bitsandbytes.
    in_32_bits = embeddings if name.endswith("8bit") and "torch" not in name else 0
    return per_weight * (weights + 3 * in_32_bits)
