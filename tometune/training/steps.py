"""What an optimiser step is made of and how many there are, without anything that trains.

A step is so many packs (`trainer.tokens_per_step`) or conversations (`trainer.conversations_per_step`) over all
processes, whatever fits into one forward pass: that only decides in how many parts the step is computed.
"""

import math
from dataclasses import dataclass

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.config.root import Config
from tometune.config.trainer import TrainerConfig

AUTO = "auto"


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    rows: int
    """Packs, or conversations, over all processes."""

    micro_batch: int
    """Of them, in one forward pass on one device."""

    @property
    def accumulation(self) -> int:
        """Forward passes a process makes for a step."""
        return self.rows // (self.micro_batch * processes())


def checkpoints_kept(trainer: TrainerConfig, steps: int) -> int:
    """Return the checkpoints that are there at the end of so many steps; while one is saved there is one more."""
    return min(trainer.save_total_limit, math.ceil(steps / trainer.save_steps))


def in_packs(trainer: TrainerConfig) -> bool:
    """Tell whether rows are joined to packs of `max_length` tokens, and steps are counted in those."""
    return trainer.packing and trainer.conversations_per_step is None


def effective_batch(config: Config) -> int:
    """Return the rows (packs or conversations) of one optimiser step over all processes.

    Raises:
        UserError: the processes cannot share them evenly.
    """
    trainer = config.trainer
    rows = trainer.conversations_per_step or trainer.tokens_per_step // trainer.max_length
    if rows % processes():
        key = "conversations_per_step" if trainer.conversations_per_step else "tokens_per_step"
        what = "packs" if in_packs(trainer) else "conversations"
        raise UserError(
            f"trainer.{key}={getattr(trainer, key)}: {rows} {what} a step cannot be shared by {processes()} processes; "
            "take another number of processes or of rows a step"
        )
    return rows


def divisors(config: Config) -> list[int]:
    """Return the micro-batches that make a whole step of one process's share, the largest first.

    Raises:
        UserError: the processes cannot share a step evenly.
    """
    share = effective_batch(config) // processes()
    return [size for size in range(share, 0, -1) if share % size == 0]


def sizes(config: Config) -> list[int]:
    """Return the micro-batches that make a whole step, the largest first; one where it is set.

    Raises:
        UserError: the one that is set does not divide a process's share of a step.
    """
    possible = divisors(config)
    wanted = config.trainer.micro_batch
    if wanted == AUTO:
        return possible
    if wanted not in possible:
        raise UserError(
            f"trainer.micro_batch={wanted}: does not divide the {possible[0]} rows a step of one process; one of "
            f"{', '.join(map(str, reversed(possible)))}, or auto"
        )
    return [int(wanted)]


def steps_of(config: Config, rows: int) -> int:
    """Return the optimiser steps over so many rows, or packs."""
    an_epoch = math.ceil(rows / effective_batch(config))
    return config.trainer.max_steps or math.ceil(config.trainer.num_train_epochs * an_epoch)
