"""Room on the disk for what a training of every weight saves: tens of bytes a weight, of which an adapter has few."""

import shutil

from tometune.common.errors import UserError
from tometune.training.batches import Training
from tometune.training.optimisers import embedded, state_bytes, trainable
from tometune.training.steps import checkpoints_kept, steps_of


def bytes_saved(training: Training) -> int:
    """Return the most bytes that checkpoints and the trained model take at once.

    A checkpoint holds the weights in float32 and the optimiser's states; while one is saved, the oldest is still there.
    """
    trainer, weights = training.config.trainer, trainable(training.model)
    checkpoint = 4 * weights + state_bytes(trainer.optim, weights, embedded(training.model))
    at_once = checkpoints_kept(trainer, steps_of(training.config, len(training.rows))) + 1
    model: int = training.dtype.itemsize * weights
    return at_once * checkpoint + model


def check_disk(training: Training) -> None:
    """Check, before every weight is trained for hours, that what is saved on the way has room.

    Raises:
        UserError: it has not.
    """
    if not training.whole:
        return
    there = sum(path.stat().st_size for path in training.checkpoints.rglob("*") if path.is_file())
    needed, free = bytes_saved(training), shutil.disk_usage(training.folder).free + there
    if needed > free:
        trainer = training.config.trainer
        raise UserError(
            f"trainer.save_total_limit={trainer.save_total_limit}: checkpoints of every weight and the model take "
            f"about {needed / 1e9:.1f} GB in {training.folder}, {free / 1e9:.1f} GB are free; free some room, keep "
            "fewer checkpoints, or set paths.outputs to another disk"
        )
