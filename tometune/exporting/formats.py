"""The merged model in 16 bits: the adapter is added into its base, and how much of the change the file keeps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from tometune.common.errors import UserError
from tometune.models.adapter import load_adapter
from tometune.models.load import load_model
from tometune.models.source import locate
from tometune.runs.finished import Finished

SHARD = "5GB"
"""Largest weight file: an interrupted upload resumes with the file it was at."""


def load_base(finished: Finished, cache: Path) -> Any:
    """Load the base that the adapter is merged into."""
    with naming_base(finished):
        return load_model(locate(finished.base, cache))


@contextmanager
def naming_base(finished: Finished) -> Iterator[None]:
    """Let an error about the base name `export.base` if the user set that."""
    try:
        yield
    except UserError as error:
        if finished.config.export.base is None:
            raise
        raise UserError(str(error).replace("model.id=", "export.base=", 1)) from error


def merge(base: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """Return the base with the adapter added into its weights.

    Each layer is added in float32 and rounded once to `dtype`; PEFT's `merge_and_unload` would round the change first.
    `base` is modified; it must not be quantised.

    Raises:
        UserError: the adapter was made for another base.
    """
    model = load_adapter(base, adapter)
    for _, weight, _ in _merge_layers(model):
        weight.data = weight.data.to(dtype)
    return model.base_model.unload().to(dtype)


def _merge_layers(model: Any) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Merge one layer after another in float32; yield its name in the base, its merged weight, and that before."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
            weight = layer.get_base_layer().weight
            before = weight.data.float()
            weight.data = before.clone()
            with torch.no_grad():
                layer.merge(safe_merge=True)  # type: ignore[operator]
            yield name.removeprefix("base_model.model."), weight, before


def sixteen_bits(published: torch.dtype | None) -> torch.dtype:
    """Return float16 for a base that is published in it, else bfloat16, which keeps the range of float32."""
    return torch.float16 if published is torch.float16 else torch.bfloat16


def write_merged(model: Any, folder: Path) -> None:
    """Save weights and config."""
    model.config.dtype = model.dtype
    model.save_pretrained(folder, max_shard_size=SHARD)


def share_of_change(base: Any, adapter: Path, written: Path) -> float | None:
    """Return the share of the exact change (the adapter added to the base in float32) that the written weights hold.

    This is the projection of written − base onto the exact change, summed over the adapted matrices: 1 if rounding to
    16 bits lost nothing, 0 for the bare base. Small changes are lost because they are below half a unit in the last
    place of most weights. `base` is modified.

    Returns None if the written file uses other tensor names than the model in memory, or the adapter changes nothing.
    """
    index = written / "model.safetensors.index.json"
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    held = total = 0.0
    for name, weight, before in _merge_layers(load_adapter(base, adapter)):
        tensor = f"{name}.weight"
        with safe_open(written / files.get(tensor, "model.safetensors"), framework="pt") as file:
            if tensor not in file.keys():  # noqa: SIM118 -- not a dict
                return None
            found = file.get_tensor(tensor).to(before)
        change = weight.data - before
        held += float(((found - before) * change).sum(dtype=torch.float64))
        total += float(change.square().sum(dtype=torch.float64))
        weight.data = weight.data[:0]  # the model is not used again: frees the memory
    return held / total if total else None
