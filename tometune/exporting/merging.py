"""Merged models: an adapter added to a base in float32, tensor by tensor, and the type in which the result is written.

Neither the base nor the merged model is ever in memory as a whole. PEFT's `merge_and_unload` needs the whole model, and
in 16 bits it rounds the change before it is added. float16 has three significant bits more than bfloat16, in which a
short training is partly lost, but a smaller range. Programs compute in the type of a file, so activations have to be in
the range, too.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.common.integrity import INDEX, shards
from tometune.config.model import Precision
from tometune.models.load import DTYPES

log = logging.getLogger(__name__)

SHARD = "2GB"  # largest file that is written: it is in memory until then, and an interrupted upload resumes with it


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a folder of safetensors, in the names and types of its files, each read when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = shards(folder) if (folder / INDEX).exists() else ["model.safetensors"]
        self.paths = [folder / name for name in (*names, INDEX) if (folder / name).exists()]
        files: list[Any] = [safe_open(folder / name, framework="pt") for name in names]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor without reading it."""
        shape: list[int] = self._files[name].get_slice(name).get_shape()
        return shape

    @property
    def dtype(self) -> str:
        """The type of all tensors in safetensors' names, e.g. `BF16`; several are joined by a space."""
        return " ".join(sorted({self._files[name].get_slice(name).get_dtype() for name in self}))

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in float32."""
        return self[name].float()


class Merged(Checkpoint):
    """A base with an adapter (LoRA, rsLoRA or DoRA) added to its weights in float32.

    Raises:
        UserError: the adapter was made for another base.
    """

    def __init__(self, folder: Path, adapter: Path) -> None:
        super().__init__(folder)
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        self._adapter = load_file(adapter / "adapter_model.safetensors")
        self._scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
        stems = [key.removesuffix(".lora_A.weight") for key in self._adapter if key.endswith(".lora_A.weight")]
        self.adapted = {f"{stem.removeprefix('base_model.model.')}.weight": stem for stem in stems}

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = super().__getitem__(name)
        if name not in self.adapted:
            return weight
        a, b = (self._adapter[f"{self.adapted[name]}.lora_{matrix}.weight"].float() for matrix in "AB")
        if weight.shape != (len(b), a.shape[1]):
            raise UserError(f"{name}: has another shape in this base, {list(weight.shape)}; name the base of the run")
        merged = weight.float() + self._scaling * (b @ a)
        magnitude = self._adapter.get(f"{self.adapted[name]}.lora_magnitude_vector")
        if magnitude is not None:  # DoRA (Liu et al. 2024, arXiv:2402.09353): rows of these lengths
            merged *= (magnitude.float() / merged.norm(dim=1))[:, None]
        return merged


def write_checkpoint(tensors: Checkpoint, config: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write tensors, rounded once, and their config into a folder that transformers can load."""
    empty = {name: torch.empty(tensors.shape(name), dtype=dtype, device="meta") for name in tensors}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()

    for file, names in split.filename_to_tensors.items():
        save_file({name: rounded(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    config.dtype = dtype
    config.save_pretrained(folder)


MARGIN = 2  # activations on other texts may be so many times larger than those that were measured


def resolve_dtype(wanted: Precision, weights: Mapping[str, torch.Tensor], activation: float) -> torch.dtype:
    """Return the type to write weights in: as wanted; `auto` is float16 if its range allows, else float32.

    `activation` is the largest one measured.

    Raises:
        UserError: float16 was asked for, and a weight is beyond its range.
    """
    if wanted not in (Precision.auto, Precision.fp16):
        return DTYPES[wanted]
    most = torch.finfo(torch.float16).max
    weight = max(float(weights[name].abs().max()) for name in weights)
    if wanted is Precision.fp16 and not weight <= most:
        raise UserError(f"export.dtype=fp16: a weight is {weight:.3g}, beyond float16 ({most:.0f}); leave it out")
    if wanted is Precision.fp16 or max(weight, MARGIN * activation) <= most:
        return torch.float16
    log.warning(
        "merged_16bit: in float32, because a weight of %.3g or an activation of %.3g is too near the end of float16; "
        "export.dtype=bf16 takes half the space and loses small changes",
        weight,
        activation,
    )
    return torch.float32


@contextmanager
def largest_activation(model: torch.nn.Module) -> Iterator[list[float]]:
    """Yield a list of one number: the largest absolute value that a module reads or returns while the body runs."""
    largest = [0.0]

    def note(_: torch.nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        values = [one for one in (*given, returned) if isinstance(one, torch.Tensor) and one.is_floating_point()]
        largest[0] = max(largest[0], *(float(one.detach().abs().max()) for one in values), 0.0)

    # Not on the parts of LoRA layers: with hooks there, these layers round in another way (models/lora_rounding.py).
    watched = [one for name, one in model.named_modules() if "base_layer" not in name and "lora_" not in name]
    hooks = [one.register_forward_hook(note) for one in watched]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
