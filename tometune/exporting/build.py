"""Makes the exports of a run, holds each at the gate, and leaves behind folders that say what they are."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from tometune.config.errors import UserError
from tometune.config.model import ModelConfig, Precision
from tometune.disk import disk_errors, write_json, write_text
from tometune.exporting import llama_cpp
from tometune.exporting.adapter import write_adapter
from tometune.exporting.card import write_card
from tometune.exporting.engines import Answering, Engine, TorchEngine
from tometune.exporting.finished import Finished
from tometune.exporting.gate import Outcome, hold
from tometune.exporting.merged import check_shape, load_base, merge, sixteen_bits, write_merged
from tometune.exporting.modelfile import modelfile
from tometune.exporting.reference import Reference, make_reference
from tometune.exporting.together import generation_config, save_together
from tometune.hub import hub_errors
from tometune.models.adapter import load_adapter
from tometune.models.load import check_machine, fingerprint, free_memory, quantized, source_of
from tometune.models.tokenizer import load_tokenizer
from tometune.run import now

log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of gate.json's layout, and of what an export holds."""

MOST_IN_FLOAT32 = 4_000_000_000
"""Weights of the largest model whose logits are compared in float32, free of the noise of 16-bit arithmetic."""

BATCH = 16
"""Prompts at once where the run's evaluation did not say."""


@dataclass(frozen=True)
class Export:
    """One export that is asked for."""

    format: str
    quant: str | None
    folder: Path

    @property
    def name(self) -> str:
        """`adapter`, `merged_16bit`, `gguf-q8_0`."""
        return self.folder.name

    @property
    def kind(self) -> str:
        """What its limits go by: the format, or the quant of a GGUF."""
        return self.quant or self.format


def asked_for(formats: Sequence[str], quants: Sequence[str], folder: Path) -> list[Export]:
    """Return the exports of these formats, a GGUF a quant, in the order in which one needs the other."""
    found = []
    for kind in ("adapter", "merged_16bit", "gguf"):
        if kind in formats:
            for quant in quants if kind == "gguf" else [None]:
                found.append(Export(kind, quant, folder / (f"gguf-{quant}" if quant else kind)))
    return found


class Builder:
    """Makes exports of one run; what several of them need is made once, when the first needs it."""

    def __init__(self, finished: Finished, cache: Path, folder: Path) -> None:
        """Take the run, the cache of models, and the folder of the exports."""
        self.finished, self.cache, self.folder = finished, cache, folder
        self.limits = finished.config.export
        dtype = getattr(torch, str(finished.record["model"]["dtype"]))
        self.answering = Answering(dtype, finished.config.eval.batch_size or BATCH)
        self.exact = parameters_of(finished) <= MOST_IN_FLOAT32
        self.tokenizer = load_tokenizer(finished.model, cache)
        self.stops: GenerationConfig | None = None

    def make(self, export: Export) -> dict[str, Any]:
        """Make an export, or find it made and passed, and return its gate.json."""
        key = self._key(export)
        found = read_gate(export.folder)
        if found is not None and found["passed"] and found["key"] == key:
            log.info("%s: found, its gate passed on %s", export.folder, found["finished"])
            return found
        reference = self.reference_for(export)  # before anything is written: the base may be gone
        start = time.perf_counter()
        with self._folder(export) as folder:
            engine = {"adapter": self._adapter, "merged_16bit": self._merged, "gguf": self._gguf}[export.format](
                export, folder
            )
            made = time.perf_counter() - start
            outcome = hold(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits)
            gate = self._gate(export, reference, key, outcome, made)
            write_json(folder / "gate.json", gate)
            write_card(self.finished, export.format, [(export.name, gate)], folder, None)
        del engine
        free_memory()
        return gate

    def reference_for(self, export: Export) -> Reference:
        """Return what an export is held against: the adapter as trained, or on the 16-bit base it is merged into.

        A base in 4 bits answers otherwise than the same in 16, whatever is merged; how much is in the reference.
        """
        if not quantized(self.finished.model):
            return self.as_trained or self.on_base
        return self.as_trained or self.on_base if export.format == "adapter" else self.on_base

    @cached_property
    def as_trained(self) -> Reference | None:
        """The adapter on its base as trained; None where that is in 4 bits and this machine cannot hold it."""
        try:
            check_machine(self.finished.model)
        except UserError:
            if not quantized(self.finished.model):
                raise
            log.warning("no GPU for the 4-bit base: exports are held against the adapter on the 16-bit one")
            return None
        return self._ask(self.finished.model, "as trained", None)

    @cached_property
    def on_base(self) -> Reference:
        """The adapter on the base in 16 bits, and how far that is from the adapter as trained."""
        return self._ask(self.finished.base, "16-bit base", self.as_trained)

    def _ask(self, model: ModelConfig, held: str, trained: Reference | None) -> Reference:
        """Load a base with the adapter on it and ask it everything."""
        if model.id != self.finished.model.id:
            check_shape(self._config(model), self._config(self.finished.model), self.finished)
        log.info("asking the adapter on %s", model.id)
        named = held != "as trained" and self.limits.base is not None
        base = load_base(self._held(model), self.cache, named)
        tuned = load_adapter(base, self.finished.adapter)
        self.stops = generation_config(base, self.tokenizer)
        self.compute = (base.dtype, base.device)
        try:
            return make_reference(self.finished, self.tokenizer, tuned, held, self.limits.examples, trained)
        finally:
            del base, tuned
            free_memory()

    def _held(self, model: ModelConfig) -> ModelConfig:
        """Return the model in float32 if it is small enough."""
        return replace(model, precision=Precision.fp32) if self.exact else model

    def _config(self, model: ModelConfig) -> Any:
        """Return the config of a base, without its weights."""
        source, revision = source_of(model, self.cache)
        with hub_errors("export.base" if model is self.finished.base else "model.id", model.id):
            return AutoConfig.from_pretrained(source, revision=revision)

    def _adapter(self, export: Export, folder: Path) -> Engine:
        """Write the adapter and load it with PEFT."""
        del export
        write_adapter(self.finished, folder)
        self._save_together(folder)
        model = self.finished.base if self.as_trained is None else self.finished.model
        return TorchEngine.of_adapter(folder, self._held(model), self.cache, self.answering)

    def _merged(self, export: Export, folder: Path) -> Engine:
        """Write the merged model and load it with transformers."""
        del export
        published = self._config(self.finished.base)
        log.info("merging into %s", self.finished.base.id)
        base = load_base(self.finished.base, self.cache, named=self.limits.base is not None)
        merged = merge(base, self.finished.adapter, sixteen_bits(published.dtype or torch.bfloat16))
        write_merged(merged, folder)
        del base, merged
        free_memory()
        self._save_together(folder)
        return TorchEngine.of_merged(folder, *self.compute, self.answering)

    def _gguf(self, export: Export, folder: Path) -> Engine:
        """Write a GGUF from the merged model and open it in llama.cpp."""
        assert export.quant is not None
        name = self.finished.record["run_id"]
        file = folder / f"{name}-{export.quant.upper()}.gguf"
        if export.quant in ("f16", "bf16"):
            llama_cpp.convert(self.folder / "merged_16bit", file, export.quant, name)
        else:
            llama_cpp.quantise(self._unquantised(name), file, export.quant)
        self._save_together(folder)
        stops = self.stops.eos_token_id if self.stops else None
        ends = self.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])
        shape = AutoConfig.from_pretrained(self.folder / "merged_16bit")
        context = getattr(shape, "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, ends, context))
        reference = self.reference_for(export)
        return llama_cpp.LlamaCppEngine(file, reference.fixed, reference.examples)

    def _unquantised(self, name: str) -> Path:
        """Return the GGUF in 16 bits that is quantised from; made once, gone with `clean`."""
        file = self.folder / ".unquantised" / "model.gguf"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            llama_cpp.convert(self.folder / "merged_16bit", file, "bf16", name)
        return file

    def clean(self) -> None:
        """Remove what is only needed while exports are made."""
        shutil.rmtree(self.folder / ".unquantised", ignore_errors=True)

    def _save_together(self, folder: Path) -> None:
        """Write what travels with every export."""
        assert self.stops is not None
        save_together(self.finished, self.tokenizer, self.stops, folder)

    @contextmanager
    def _folder(self, export: Export) -> Iterator[Path]:
        """Give a new folder, which takes the place of the export's own when the body is through."""
        new = self.folder / f".{export.name}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            with disk_errors(self.folder):
                new.mkdir(parents=True)
                yield new
            shutil.rmtree(export.folder, ignore_errors=True)
            new.replace(export.folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _key(self, export: Export) -> dict[str, Any]:
        """Return everything that an export and its gate depend on."""
        engines = {"adapter": ["peft"], "merged_16bit": ["transformers"], "gguf": ["cyllama", "xllamacpp"]}
        return {
            "schema": SCHEMA,
            "adapter": self.finished.digest(),
            "base": fingerprint(self.finished.base),
            "trained_on": fingerprint(self.finished.model),
            "limits": {
                name: value[export.kind] if isinstance(value, dict) else value
                for name, value in asdict(self.limits).items()
                if name in ("examples", "max_divergence", "max_rouge_change")
            },
            "versions": {name: metadata.version(name) for name in ["torch", *engines[export.format]]},
        }

    def _gate(
        self, export: Export, reference: Reference, key: dict[str, Any], outcome: Outcome, made: float
    ) -> dict[str, Any]:
        """Return the content of gate.json."""
        return {
            "schema": SCHEMA,
            "run_id": self.finished.record["run_id"],
            "format": export.format,
            "quant": export.quant,
            "passed": outcome.passed,
            "problems": outcome.problems,
            "engine": outcome.engine,
            "reference": {"model": reference.model, "dtype": reference.dtype},
            "checks": outcome.checks,
            "seconds": {"export": round(made, 1), "gate": outcome.seconds},
            "key": key,
            "finished": now(),
        }


def read_gate(folder: Path) -> dict[str, Any] | None:
    """Return an export's gate.json; None where there is none, or a broken one."""
    try:
        found: dict[str, Any] = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("schema") == SCHEMA else None


def parameters_of(finished: Finished) -> int:
    """Return the number of the base's weights, as the run counted them."""
    return int(finished.record["model"]["parameters"])
