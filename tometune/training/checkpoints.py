"""Checkpoints: which one is whole, what a run broken off goes on from; and the adapter or the model at the end."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tometune.common.files import disk_errors, temporary_path

log = logging.getLogger(__name__)

SHARD = "5GB"
"""Largest file of a whole model's weights."""

STATE = "trainer_state.json"
"""Written last by transformers' Trainer: a checkpoint that has it, whole, is whole."""

METER = "meter.json"
"""Seconds and tokens up to the checkpoint."""

FILES = ("optimizer.pt", "scheduler.pt", METER, STATE)
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
"""One of them: an adapter, a whole model, or one in several files."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint under `folder`; broken ones that are newer are deleted.

    A kill in the middle of saving leaves a checkpoint without some of its files, or with a half of one.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if _whole(checkpoint):
            return checkpoint
        log.warning("%s is not whole (broken off while it was saved); it is deleted", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    """Tell whether every file is there and the one written last can be read."""
    weights = [checkpoint / name for name in WEIGHTS if (checkpoint / name).exists()]
    weights += _shards(checkpoint / WEIGHTS[-1])
    generators = list(checkpoint.glob("rng_state*.pth"))
    files = [*(checkpoint / name for name in FILES), *weights, *generators]
    # A power cut, other than a kill, can leave the names of files without their content.
    if not weights or not generators or not all(file.is_file() and file.stat().st_size for file in files):
        return False
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)


def _shards(index: Path) -> list[Path]:
    """Return the files of a whole model that is saved in several; one that is not there where the index is broken."""
    if not index.is_file():
        return []
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError):
        names = ["unknown"]
    return [index.with_name(name) for name in sorted(set(names))]


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the adapter as safetensors, under a temporary name first, so that the folder is whole if it is there.

    Args:
        model: with the adapter.
        folder: where to.
        base: what the adapter names as its base model: the hub id, not the folder of a copy in the cache.
    """
    with _at_once(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        named = temporary / "adapter_config.json"
        settings = json.loads(named.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        named.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_whole(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype, published: tuple[Any, Any]) -> None:
    """Write a whole model as safetensors, with its tokenizer, so that the folder is whole if it is there.

    Args:
        model: the trained model, in float32; afterwards in `dtype`.
        tokenizer: its tokenizer.
        folder: where to.
        dtype: what the weights are rounded to: that of the arithmetic they were trained in, and are scored in.
        published: the model's config and generation config as its author wrote them; the trainer and Unsloth set what
            they need in the model's own.
    """
    with _at_once(folder) as temporary:
        model.to(dtype)
        model.config, model.generation_config = published
        model.config.dtype = dtype
        model.save_pretrained(temporary, max_shard_size=SHARD)
        tokenizer.save_pretrained(temporary)


@contextmanager
def _at_once(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` once the body is through."""
    with temporary_path(folder, folder=True) as temporary:
        with disk_errors(folder):
            yield temporary
        mode = next(temporary.glob("*.json")).stat().st_mode
        for weights in temporary.glob("*.safetensors"):
            weights.chmod(mode)  # safetensors lets only its owner read it
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
