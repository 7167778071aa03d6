"""The merged model in 16 bits: the adapter is added into its base, and how much of the change the file keeps."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig
from tometune.models.adapter import load_adapter
from tometune.models.load import load_model
from tometune.models.source import locate

SHARD = "5GB"
"""Largest weight file: an interrupted upload resumes with the file it was at."""


def load_base(model: ModelConfig, cache: Path, named: bool) -> Any:
    """Load the base that the adapter is merged into; `named` if the user chose it with `export.base`."""
    with naming_base(named):
        return load_model(locate(model, cache))


@contextmanager
def naming_base(named: bool) -> Iterator[None]:
    """Let an error about the model name `export.base` if the user set that."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.id=", "export.base=", 1) if named else str(error)) from error


def merge(base: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """Return the base with the adapter added into its weights.

    Each layer is added in float32 and rounded once to `dtype`; PEFT's `merge_and_unload` would round the change first.
    `base` is modified; it must not be quantised.

    Raises:
        UserError: the adapter was made for another base.
    """
    model = load_adapter(base, adapter)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
                weight = layer.get_base_layer().weight
                weight.data = weight.data.float()
                layer.merge(safe_merge=True)  # type: ignore[operator]
                weight.data = weight.data.to(dtype)
    return model.base_model.unload().to(dtype)


def sixteen_bits(published: torch.dtype | None) -> torch.dtype:
    """Return float16 for a base that is published in it, else bfloat16, which keeps the range of float32."""
    return torch.float16 if published is torch.float16 else torch.bfloat16


def write_merged(model: Any, folder: Path) -> None:
    """Save weights and config."""
    model.config.dtype = model.dtype
    model.save_pretrained(folder, max_shard_size=SHARD)


def share_of_change(base: Any, adapter: Path, written: Path) -> float | None:
    """Return the share of the exact change (base + scaling · B · A in float32) that the written weights hold.

    This is the projection of written − base onto the exact change, summed over the adapted matrices: 1 if rounding to
    16 bits lost nothing, 0 for the bare base. Small changes are lost because they are below half a unit in the last
    place of most weights (LoRA: arXiv:2106.09685; DoRA also rescales each row: arXiv:2402.09353).

    Returns None if the written file uses other tensor names than the model in memory, or the adapter changes nothing.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    index = written / "model.safetensors.index.json"
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    held = total = 0.0
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as lora:
        keys = set(lora.keys())
        for prefix in sorted(key.removesuffix("lora_A.weight") for key in keys if key.endswith("lora_A.weight")):
            name = prefix.removeprefix("base_model.model.").removesuffix(".")
            down, up = (lora.get_tensor(f"{prefix}lora_{part}.weight").float() for part in "AB")
            before = base.get_submodule(name).weight.detach().cpu().float()
            rank = down.shape[0]
            exact = before + config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank) * (
                up @ down
            )
            if f"{prefix}lora_magnitude_vector" in keys:
                lengths = lora.get_tensor(f"{prefix}lora_magnitude_vector").float()
                exact *= (lengths / exact.norm(dim=1)).unsqueeze(1)
            tensor = f"{name}.weight"
            with safe_open(written / files.get(tensor, "model.safetensors"), framework="pt") as file:
                if tensor not in set(file.keys()):
                    return None
                found = file.get_tensor(tensor).float()
            held += float(((found - before) * (exact - before)).sum(dtype=torch.float64))
            total += float((exact - before).square().sum(dtype=torch.float64))
    return held / total if total else None
