"""Whether what training changed is in an export's weights, looked at in the files: exact where logits cannot tell.

A few layers are read, spread over the model. Each LoRA layer is W + s·B·A (Hu et al. 2021, https://arxiv.org/abs/2106.09685),
s = alpha / r, or alpha / √r with rsLoRA; DoRA scales its rows to a length that was learnt (https://arxiv.org/abs/2402.09353).
"""

import filecmp
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

LAYERS = 6
"""Layers that are looked at."""

AS_THEY_ARE = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers whose rows llama.cpp's converter leaves in their order; queries and keys it may permute."""

KEPT, OTHERS = 0.9, 0.02
"""Least share of the numbers that training changed which are as they should be, and most of all that are not: the last
bit of a sum depends on its order."""

Found = tuple[dict[str, Any], list[str]]
"""What a check measured, and what is wrong, one line each."""


@dataclass(frozen=True)
class Update:
    """What training does to one layer."""

    name: str
    """Of the module in the base, e.g. `model.layers.3.mlp.down_proj`."""

    delta: torch.Tensor
    """float32 [out, in]: s·B·A."""

    magnitude: torch.Tensor | None
    """float32 [out], the rows' lengths with DoRA."""

    def on(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the layer's weight after training, float32, from the one before."""
        total = weight.float() + self.delta
        if self.magnitude is None:
            return total
        return total * (self.magnitude / total.norm(dim=1)).unsqueeze(1)


def layers_of(adapter: Path) -> list[str]:
    """Return the names of the layers that are looked at."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        keys = [key for key in list(file.keys()) if key.endswith(".lora_A.weight")]
    return spread([key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in keys])


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's linear layers but for its head, which may be the embedding."""
    layers = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in layers if not name.endswith("lm_head")]


def spread(names: Sequence[str]) -> list[str]:
    """Return a few of these layers, of each kind and from all over the model."""
    plain = sorted(name for name in names if name.endswith(AS_THEY_ARE)) or sorted(names)
    by_kind: dict[str, list[str]] = {}
    for name in sorted(plain, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()]):
        by_kind.setdefault(name.rpartition(".")[2], []).append(name)
    # One of each kind in turn, each further into the model.
    turned = [
        kind[(place * len(kind)) // len(by_kind) :] + kind[: (place * len(kind)) // len(by_kind)]
        for place, kind in enumerate(by_kind.values())
    ]
    in_turn = [name for names in zip_longest(*turned) for name in names if name is not None]
    return in_turn[:LAYERS]


def updates(adapter: Path) -> Iterator[Update]:
    """Yield what training did to the layers that are looked at, one at a time: large models have large layers."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        for name in layers_of(adapter):
            key = f"base_model.model.{name}."
            down, up = (file.get_tensor(f"{key}lora_{part}.weight").float() for part in "AB")
            rank = down.shape[0]
            scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
            dora = f"{key}lora_magnitude_vector"
            magnitude = file.get_tensor(dora).float() if dora in set(file.keys()) else None
            yield Update(name, scale * (up @ down), magnitude)


def stored(folder: Path, name: str) -> torch.Tensor | None:
    """Return a layer's weight from a folder in Hugging Face's format; None where it is saved under another name."""
    key, index = f"{name}.weight", folder / "model.safetensors.index.json"
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    with safe_open(folder / places.get(key, next(iter(places.values()), "model.safetensors")), framework="pt") as file:
        return file.get_tensor(key) if key in set(file.keys()) else None


def check_adapter(adapter: Path, folder: Path) -> Found:
    """Compare an exported adapter's weights with the run's, byte by byte."""
    name = "adapter_model.safetensors"
    same = filecmp.cmp(adapter / name, folder / name, shallow=False)
    return {"same_bytes": same}, [] if same else [f"weights: {name} is not the run's"]


def check_rounded(run: Path, exported: Path) -> Found:
    """Compare every number of an exported whole model with the run's, rounded as the export's are.

    Args:
        run: folder of the model that was trained.
        exported: folder of the export.
    """
    numbers = others = 0
    names = _names(run)
    missing = sorted(names.keys() ^ _names(exported).keys())
    for name in names.keys() - set(missing):
        found, should = (_tensor(folder, name) for folder in (exported, run))
        numbers += found.numel()
        others += found.numel() if found.shape != should.shape else int((found != should.to(found.dtype)).sum())
    checks = {"tensors": len(names), "numbers": numbers, "others": others}
    if missing:
        return checks, [f"weights: {missing[0]} is not in both the run's model and the export"]
    return checks, [f"weights: {others:,} of {numbers:,} numbers are not the run's, rounded"] if others else []


def _names(folder: Path) -> dict[str, str]:
    """Return the file of each tensor of a model in Hugging Face's format."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return places
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return dict.fromkeys(list(file.keys()), "model.safetensors")


def _tensor(folder: Path, name: str) -> torch.Tensor:
    """Read a tensor of such a model."""
    with safe_open(folder / _names(folder)[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def check_merged(originals: Mapping[str, torch.Tensor], adapter: Path, merged: Path) -> Found:
    """Compare a merged model's numbers with what base and adapter add up to, rounded as they are.

    Args:
        originals: the base's weights by layer, as `layers_of` names them.
        adapter: folder of the run's adapter.
        merged: folder of the export.
    """
    layers = numbers = changed = kept = others = 0
    trained = False
    for update in updates(adapter):
        found, before = stored(merged, update.name), originals[update.name]
        if found is None or found.shape != before.shape:
            continue
        layers, should = layers + 1, update.on(before)
        same, moved = found == should.to(found.dtype), should.to(found.dtype) != before.to(found.dtype)
        trained |= bool((should != before.float()).any())
        numbers, others = numbers + found.numel(), others + int((~same).sum())
        changed, kept = changed + int(moved.sum()), kept + int((moved & same).sum())
    checks = {"layers": layers, "numbers": numbers, "changed": changed, "kept": kept, "others": others}
    if trained and not changed:
        return checks, ["weights: 16 bits keep nothing of what training changed; train longer or at a higher rate"]
    if kept < KEPT * changed:
        return checks, [
            f"weights: {kept:,} of {changed:,} numbers that training changes are as base and adapter add up to; the "
            "adapter is not in them"
        ]
    if others > OTHERS * numbers:
        return checks, [f"weights: {others:,} of {numbers:,} numbers are not what base and adapter add up to"]
    return checks, []
