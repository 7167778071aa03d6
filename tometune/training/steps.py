"""How many optimiser steps a training makes, without anything that trains."""

import math

from tometune.config.root import Config
from tometune.distributed import processes


def effective_batch(config: Config) -> int:
    """Return the rows of one optimiser step over all processes."""
    trainer = config.trainer
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * processes()


def steps_of(config: Config, rows: int) -> int:
    """Return the optimiser steps over so many rows, or packs."""
    an_epoch = math.ceil(rows / effective_batch(config))
    return config.trainer.max_steps or math.ceil(config.trainer.num_train_epochs * an_epoch)
