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
from tometune.common.files import disk_errors, sync_folder, temporary_path
from tometune.common.integrity import INDEX, defect, shards
from tometune.training.metrics import CURVES, METER, PENDING
from tometune.training.steps import checkpoints_kept, state_bytes, steps_of

if TYPE_CHECKING:
    from tometune.training.batches import Training

log = logging.getLogger(__name__)

SHARD = "5GB"  # largest file of a whole model's weights
STATE = "trainer_state.json"  # written last by transformers' Trainer, so it marks a checkpoint as complete
SAVING = ".saving"  # folder next to the checkpoints in which the next one is written; a kill leaves it behind
FILES = ("optimizer.pt", "scheduler.pt", METER, STATE)
OPTIONAL = ("scaler.pt", "adapter_config.json", "config.json", CURVES, PENDING)
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", INDEX)
"""One of them: an adapter, a whole model, or the index of one in several files."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; newer ones, of which a file is missing or damaged, are deleted."""
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if (problem := problem_of(checkpoint)) is None:
            return checkpoint
        log.warning("%s is damaged (%s); deleted", checkpoint, problem)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def problem_of(checkpoint: Path) -> str | None:
    """Return what is wrong with the first damaged file among those that resuming reads, or None."""
    weights = [name for name in WEIGHTS if (checkpoint / name).exists()]
    generators = [path.name for path in checkpoint.glob("rng_state*.pth")]
    optional = [name for name in OPTIONAL if (checkpoint / name).exists()]
    if INDEX in weights and defect(checkpoint / INDEX) is None:
        try:
            weights += shards(checkpoint)
        except ValueError as error:
            return f"{INDEX} {error}"
    for name in (*FILES, *(weights or WEIGHTS[:1]), *(generators or ["rng_state.pth"]), *optional):
        if (problem := defect(checkpoint / name)) is not None:
            return f"{name} {problem}"
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    same = isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)
    return None if same else f"{STATE} is that of another step"


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
        settings["target_modules"].sort()  # a set in PEFT, so their order would differ between processes
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
        with disk_errors(folder):
            sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
