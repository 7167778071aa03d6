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
from tometune.exporting.finished import Finished, stored_in_4_bits
from tometune.exporting.gate import Outcome, hold
from tometune.exporting.merged import check_shape, load_base, merge, sixteen_bits, write_merged
from tometune.exporting.modelfile import modelfile
from tometune.exporting.reference import Reference, make_reference
from tometune.exporting.together import generation_config, save_together
from tometune.models.adapter import load_adapter
from tometune.models.load import check_machine, fingerprint, free_memory, load_model, quantized, source_of
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
        reference = self.reference  # before anything is written: the base may be gone
        start = time.perf_counter()
        with self._folder(export) as folder:
            engine = {"adapter": self._adapter, "merged_16bit": self._merged, "gguf": self._gguf}[export.format](
                export, folder
            )
            made = time.perf_counter() - start
            outcome = hold(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits)
            gate = self._gate(export, key, outcome, made)
            write_json(folder / "gate.json", gate)
            write_card(self.finished, export.format, [(export.name, gate)], folder, None)
        del engine
        free_memory()
        return gate

    @cached_property
    def reference(self) -> Reference:
        """The adapter's behaviour, on its base as trained if this machine can hold that."""
        model, held = self.finished.model, "as trained"
        try:
            check_machine(model)
        except UserError:
            if not quantized(model):
                raise
            model, held = self.finished.base, "16-bit base"
            log.warning("no GPU for the 4-bit base: exports are held against the adapter on the 16-bit one")
        log.info("asking the adapter on %s", model.id)
        base = load_model(self._held(model), self.cache)
        tuned = load_adapter(base, self.finished.adapter)
        self.stops = generation_config(base, self.tokenizer)
        self.compute = (base.dtype, base.device)
        self.trained_shape = base.config
        try:
            return make_reference(self.finished, self.tokenizer, tuned, held, self.limits.examples)
        finally:
            del base, tuned
            free_memory()

    def _held(self, model: ModelConfig) -> ModelConfig:
        """Return the model in float32 if it is small enough."""
        return replace(model, precision=Precision.fp32) if self.exact else model

    def _adapter(self, export: Export, folder: Path) -> Engine:
        """Write the adapter and load it with PEFT."""
        del export
        write_adapter(self.finished, folder)
        self._save_together(folder)
        model = self.finished.model if self.reference.model == "as trained" else self.finished.base
        return TorchEngine.of_adapter(folder, self._held(model), self.cache, self.answering)

    def _merged(self, export: Export, folder: Path) -> Engine:
        """Write the merged model and load it with transformers."""
        del export
        base_config = self.finished.base
        source, revision = source_of(base_config, self.cache)
        published = AutoConfig.from_pretrained(source, revision=revision)
        if stored_in_4_bits(self.finished.model) or self.limits.base is not None:
            check_shape(published, self.trained_shape, self.finished)
        log.info("merging into %s", base_config.id)
        base = load_base(base_config, self.cache, named=self.limits.base is not None)
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
        context = getattr(self.trained_shape, "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, ends, context))
        return llama_cpp.LlamaCppEngine(file, self.reference.fixed, self.reference.examples)

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

    def _gate(self, export: Export, key: dict[str, Any], outcome: Outcome, made: float) -> dict[str, Any]:
        """Return the content of gate.json."""
        return {
            "schema": SCHEMA,
            "run_id": self.finished.record["run_id"],
            "format": export.format,
            "quant": export.quant,
            "passed": outcome.passed,
            "problems": outcome.problems,
            "engine": outcome.engine,
            "reference": {"model": self.reference.model, "dtype": self.reference.dtype},
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
