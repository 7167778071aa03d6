"""Finished runs: the record, the files that training left behind, and the base model that an adapter needs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tometune.common.errors import UserError
from tometune.common.hub import is_commit
from tometune.config.export import ExportConfig, listed
from tometune.config.model import FOUR_BITS, ModelConfig, Precision, Quantization, Weights
from tometune.config.root import Config
from tometune.models.source import ADAPTER, WHOLE, as_saved, fingerprint, quantized
from tometune.runs.run import read_record
from tometune.runs.stored import run_folder, stored_config

REPEAT = "repeat the command that made this run"  # fixes files that are missing or broken


def finished_record(folder: Path) -> dict[str, Any]:
    """Return run.json of a run whose training and scoring are done and whose files are complete, or raise UserError."""
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(f"{folder}: not finished (status {record['status']}); {REPEAT} to resume it")
    check_trained(folder, adapter=stored_config(folder).lora.enabled)
    return record


def check_trained(run: Path, adapter: bool) -> None:
    """Raise UserError unless the adapter of a run, or its whole model (`lora=none`), is complete."""
    folder = run / (ADAPTER if adapter else WHOLE)
    weights = ["adapter_model.safetensors"] if adapter else _shards(folder)
    tensors: set[str] = set()
    for name in [*(["adapter_config.json"] if adapter else ["config.json", "tokenizer_config.json"]), *weights]:
        path = folder / name
        if not path.is_file():
            pickled = path.with_suffix(".bin").exists()
            why = "holds its weights as a pickle, which can run code when it is read" if pickled else f"holds no {name}"
            raise UserError(f"{folder}: {why}; {REPEAT}")
        if name in weights:
            try:
                with safe_open(path, framework="np") as file:
                    tensors.update(file.keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: broken or truncated ({error}); {REPEAT}") from None
    if adapter and not any(".lora_A." in name for name in tensors):
        raise UserError(f"{folder / weights[0]}: holds no LoRA weights; {REPEAT}")


def _shards(folder: Path) -> Sequence[str]:
    """Return the names of the weight files of a whole model."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError):
        raise UserError(f"{index}: not an index of weight files; {REPEAT}") from None


@dataclass(frozen=True)
class Finished:
    """A finished run that is to be exported."""

    folder: Path
    record: dict[str, Any]  # run.json
    config: Config  # the run's own, with `paths` and `export` of this command
    model: ModelConfig  # the base model that was trained, at the revision that was read then
    base: ModelConfig  # the base model in 16 bits or more, into which the adapter is merged

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def whole(self) -> ModelConfig | None:
        """The model that `lora=none` trained, to be loaded like any other; None if the run trained an adapter."""
        return None if self.config.lora.enabled else as_saved(self.model, self.folder)

    @property
    def base_name(self) -> str:
        """What users of the adapter load as its base."""
        return _public_name(self.model)

    @property
    def merged_into(self) -> str:
        """The base of the merged model."""
        return _public_name(self.base)

    def digest(self) -> str:
        """Return the sha256 of the adapter's files; for a whole model, its fingerprint."""
        if self.whole is not None:
            return fingerprint(self.whole)
        digest = sha256()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update((self.adapter / name).read_bytes())
        return digest.hexdigest()


def find_finished(config: Config) -> Finished:
    """Return the run that `run=…` names; writes nothing.

    Raises:
        UserError: the run does not exist, is not finished or is incomplete; its base is gone or has changed, or no base
            in 16 bits is known; or the command asks for an adapter of a run that trained every weight.
    """
    if config.run is None:
        raise UserError("run: missing; name a finished run, e.g. run=outputs/<run_id>")
    folder = run_folder(config.run, config.paths)
    record = finished_record(folder)
    stored = replace(stored_config(folder), paths=config.paths, export=config.export)
    for task in stored.eval.tasks:
        answers = folder / "eval" / "tuned" / f"{task}.jsonl"
        if not answers.is_file() or not answers.stat().st_size:
            fix = f"score the run again: python -m tometune.evaluate run={folder}"
            raise UserError(f"{answers}: missing or empty; {fix}")
    model = as_trained(stored.model, record)
    if not stored.lora.enabled:
        name, base = folder.name, config.export.base
        if ADAPTER in listed(config.format):
            raise UserError(f"format=adapter: {name} was trained with lora=none and has none; use merged_16bit or gguf")
        if base is not None:
            raise UserError(f"export.base={base}: {name} is a whole model, which is not merged; leave it out")
    return Finished(folder, record, stored, model, base_of(model, config.export))


def is_local(model: ModelConfig) -> bool:
    """Return whether a model is a folder on this machine."""
    return model.weights is Weights.pretrained and Path(model.id).expanduser().is_dir()


def _public_name(model: ModelConfig) -> str:
    """Return a hub id, or the name of a local folder without its path."""
    return Path(model.id).name if is_local(model) else model.id


def base_of(model: ModelConfig, export: ExportConfig) -> ModelConfig:
    """Return the base in 16 bits that an adapter trained on `model` is merged into; UserError if it must be named."""
    plain = replace(model, quantization=Quantization.none, precision=Precision.auto)
    if export.base is not None:
        return replace(plain, id=export.base, revision=export.base_revision)
    ending = next((ending for ending in FOUR_BITS if model.id.endswith(ending)), "")
    if not is_local(model):
        if not (quantized(model) and ending):
            return plain
        return replace(plain, id=model.id.removesuffix(ending), revision=export.base_revision)
    config = json.loads((Path(model.id).expanduser() / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" not in config:
        return plain
    raise UserError(
        f"export.base: missing; {model.id} is stored in 4 bits, so name the same model in 16 bits, e.g. "
        "export.base=unsloth/Llama-3.2-3B-Instruct"
    )


def as_trained(model: ModelConfig, record: dict[str, Any]) -> ModelConfig:
    """Return the base model at the revision that the run read; UserError if it is gone or has changed."""
    then = str(record["model"]["revision"])
    if is_commit(then):
        return replace(model, revision=then)
    if model.weights is Weights.pretrained and Path(model.id).is_absolute() and not Path(model.id).exists():
        raise UserError(f"model.id={model.id}: the base of this run is gone; restore the folder")
    now = fingerprint(model)
    if now != then:
        raise UserError(
            f"model.id={model.id}: not the base that this run was trained on (that was {then}, this is {now}); "
            "restore it, or train again"
        )
    return model
