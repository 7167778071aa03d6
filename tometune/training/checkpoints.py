"""Checkpoints: which one is complete, the disk space they need, and saving the trained adapter or model."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, temporary_path
from tometune.training.metrics import METER
from tometune.training.steps import checkpoints_kept, state_bytes, steps_of

if TYPE_CHECKING:
    from tometune.training.batches import Training

log = logging.getLogger(__name__)

SHARD = "5GB"
"""Largest file of a whole model's weights."""

STATE = "trainer_state.json"
"""Written last by transformers' Trainer, so it marks a checkpoint as complete."""

FILES = ("optimizer.pt", "scheduler.pt", METER, STATE)
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
"""One of them: an adapter, a whole model, or the index of one in several files."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; newer ones are deleted, whose files a kill left missing or truncated."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if _is_complete(checkpoint):
            return checkpoint
        log.warning("%s is incomplete (interrupted while saving); deleted", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_complete(checkpoint: Path) -> bool:
    """Tell whether every file exists, and those that list others or are written last can be read."""
    weights = [checkpoint / name for name in WEIGHTS if (checkpoint / name).exists()]
    generators = list(checkpoint.glob("rng_state*.pth"))
    try:
        if (index := checkpoint / WEIGHTS[-1]) in weights:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            weights += [checkpoint / name for name in set(names)]
        step = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    files = [*(checkpoint / name for name in FILES), *weights, *generators]
    # Unlike a kill, a power cut can leave files without their content.
    whole = all(file.is_file() and file.stat().st_size for file in files)
    return whole and bool(weights and generators) and step == step_of(checkpoint)


def check_disk(training: "Training", weights: int, embeddings: int) -> None:
    """Check before a full fine-tuning that the disk has space for its checkpoints and its model.

    A checkpoint holds the weights in float32 and the optimiser's states. While one is saved, the oldest still exists.

    Raises:
        UserError: the space is not enough.
    """
    trainer, folder = training.inputs.trainer, training.inputs.folder
    checkpoints = checkpoints_kept(trainer, steps_of(trainer, len(training.rows))) + 1
    needed = checkpoints * (4 * weights + state_bytes(trainer.optim, weights, embeddings))
    needed += training.dtype.itemsize * weights
    existing = sum(path.stat().st_size for path in training.checkpoints.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + existing
    if needed > free:
        raise UserError(
            f"trainer.save_total_limit={trainer.save_total_limit}: the checkpoints and the model of a full fine-tuning "
            f"take about {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; free some space, keep fewer "
            "checkpoints, or set paths.outputs to another disk"
        )


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the adapter as safetensors; the folder exists only once it is complete.

    Its config names the base model by `base`, the hub id, not by the folder of a copy in the cache.
    """
    with _complete_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        path = temporary / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_full_model(
    model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype, author_configs: tuple[Any, Any]
) -> None:
    """Write a whole model as safetensors, with its tokenizer; the folder exists only once it is complete.

    The model is cast to `dtype`, that of the arithmetic in training, which scoring uses too. `author_configs` are its
    config and generation config as the author wrote them; the trainer and Unsloth change the model's own.
    """
    with _complete_folder(folder) as temporary:
        model.to(dtype)
        model.config, model.generation_config = author_configs
        model.config.dtype = dtype
        model.save_pretrained(temporary, max_shard_size=SHARD)
        tokenizer.save_pretrained(temporary)


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` after the body."""
    with temporary_path(folder, folder=True) as temporary:
        with disk_errors(folder):
            yield temporary
        mode = next(temporary.glob("*.json")).stat().st_mode
        for weights in temporary.glob("*.safetensors"):
            weights.chmod(mode)  # safetensors makes files that only their owner can read
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
