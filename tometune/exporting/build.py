"""Makes the exports of a run, holds each at the gate, and leaves behind folders that say what they are."""

import logging
import shutil
import time
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tometune.disk import write_json, write_text
from tometune.exporting import llama_cpp
from tometune.exporting.adapter import write_adapter
from tometune.exporting.asked import SCHEMA, Export, read_gate
from tometune.exporting.card import write_card
from tometune.exporting.engines import Answering, Engine, TorchEngine
from tometune.exporting.finished import Finished
from tometune.exporting.gate import Outcome, Step, hold
from tometune.exporting.merged import load_base, merge, sixteen_bits, write_merged
from tometune.exporting.modelfile import modelfile
from tometune.exporting.places import new_folder, recover, settle
from tometune.exporting.reference import Reference
from tometune.exporting.references import References
from tometune.exporting.together import save_together
from tometune.exporting.weights import check_adapter, check_merged, layers_of
from tometune.models.load import fingerprint, free_memory
from tometune.models.tokenizer import load_tokenizer
from tometune.run import now

log = logging.getLogger(__name__)

BATCH = 16
"""Prompts at once where the run's evaluation did not say."""

Made = tuple[Engine, Step | None]
"""An export in its engine, and the check of the numbers in its files."""


class Builder:
    """Makes exports of one run; what several of them need is made once, when the first needs it."""

    def __init__(self, finished: Finished, cache: Path, folder: Path) -> None:
        """Take the run, the cache of models, and the folder of the exports."""
        self.finished, self.cache, self.folder = finished, cache, folder
        self.limits = finished.config.export
        dtype = getattr(torch, str(finished.record["model"]["dtype"]))
        self.answering = Answering(dtype, finished.config.eval.batch_size or BATCH)
        self.tokenizer = load_tokenizer(finished.model, cache)
        self.references = References(finished, cache, self.tokenizer)

    def make(self, export: Export) -> dict[str, Any]:
        """Make an export, or find it made and passed, and return its gate.json."""
        key = self._key(export)
        recover(export.folder)
        found = read_gate(export.folder)
        if found is not None and found["passed"] and found["key"] == key:
            log.info("%s: found, its gate passed on %s", export.folder, found["finished"])
            return found
        reference = self.references.of(export.format)  # before anything is written: the base may be gone
        start = time.perf_counter()
        with new_folder(export.folder) as folder:
            makers = {"adapter": self._adapter, "merged_16bit": self._merged, "gguf": self._gguf}
            engine, weights = makers[export.format](export, folder)
            made = time.perf_counter() - start
            outcome = hold(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits, weights)
            gate = self._gate(export, reference, key, outcome, made)
            write_json(folder / "gate.json", gate)
            write_card(self.finished, export.format, [(export.name, gate)], folder, None)
            gate["folder"] = str(settle(folder, export.folder, gate))
        del engine
        free_memory()
        return gate

    def _adapter(self, export: Export, folder: Path) -> Made:
        """Write the adapter and load it with PEFT."""
        del export
        write_adapter(self.finished, folder)
        self._save_together(folder)
        model = self.finished.base if self.references.as_trained is None else self.finished.model
        engine = TorchEngine.of_adapter(folder, self.references.held(model), self.cache, self.answering)
        return engine, partial(check_adapter, self.finished.adapter, folder)

    def _merged(self, export: Export, folder: Path) -> Made:
        """Write the merged model and load it with transformers."""
        del export
        published = self.references.config_of(self.finished.base)
        log.info("merging into %s", self.finished.base.id)
        base = load_base(self.finished.base, self.cache, named=self.limits.base is not None)
        before = {
            name: base.get_submodule(name).weight.detach().cpu().clone() for name in layers_of(self.finished.adapter)
        }
        merged = merge(base, self.finished.adapter, sixteen_bits(published.dtype or torch.bfloat16))
        write_merged(merged, folder)
        del base, merged
        free_memory()
        self._save_together(folder)
        engine = TorchEngine.of_merged(folder, *self.references.compute, self.answering)
        return engine, partial(check_merged, before, self.finished.adapter, folder)

    def _gguf(self, export: Export, folder: Path) -> Made:
        """Write a GGUF from the merged model and open it in llama.cpp."""
        assert export.quant is not None
        name = self.finished.record["run_id"]
        file = folder / f"{name}-{export.quant.upper()}.gguf"
        if export.quant in ("f16", "bf16"):
            llama_cpp.convert(self.folder / "merged_16bit", file, export.quant, name)
        else:
            llama_cpp.quantise(self._unquantised(name), file, export.quant)
        self._save_together(folder)
        stops = self.references.stops.eos_token_id
        ends = self.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])
        shape = AutoConfig.from_pretrained(self.folder / "merged_16bit")
        context = getattr(shape, "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, ends, context))
        reference = self.references.of(export.format)
        return llama_cpp.LlamaCppEngine(file, reference.fixed, reference.examples), None

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
        save_together(self.finished, self.tokenizer, self.references.stops, folder)

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
