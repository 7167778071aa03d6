"""Finished runs: what is missing or damaged in them, what has to be made again, and the base model of an adapter."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.hub import is_commit
from tometune.config.export import ExportConfig, listed
from tometune.config.model import FOUR_BITS, ModelConfig, Precision, Quantization, Weights
from tometune.config.root import Config
from tometune.models.source import ADAPTER, WHOLE, as_saved, fingerprint, is_local, quantized
from tometune.runs.run import (
    CURVES,
    REPEAT,
    DamageError,
    Run,
    check,
    curve_problems,
    mix_problems,
    read_record,
    score_problems,
    trained_problems,
)
from tometune.runs.stored import config_of, run_folder

log = logging.getLogger(__name__)


def finished_record(folder: Path) -> tuple[dict[str, Any], Config]:
    """Return run.json and the config of a run whose training and scoring are done and whose weights are whole.

    Raises:
        DamageError: a file is missing or damaged.
        UserError: there is no such run, or it is not finished.
    """
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(f"{folder}: not finished (status {record['status']}); {REPEAT} to resume it")
    config = config_of(folder, record)
    check(folder, trained_problems(folder, config.lora.enabled))
    return record, config


def damage(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the problems of a trained run by file; config, mix and scores are checked only if it is completed."""
    lacking = [key for key in ("config_hash", "seed", "model", "data", "train", "eval") if record.get(key) is None]
    if lacking:
        return {"run.json": f"lacks {lacking[0]}"} if record.get("status") == "completed" else {}
    adapter = record["train"].get("kind") != "full"
    found = dict([*curve_problems(folder, record), *trained_problems(folder, adapter)])
    if record["status"] == "completed":
        try:
            config_of(folder, record)
        except DamageError as error:
            found["config.yaml"] = error.problem
        found |= dict(mix_problems(folder))
        if "tuned" not in record["eval"]:
            found["run.json"] = "lacks the scores of the tuned model"
        found |= dict(score_problems(folder, record))
    return found


def reopen(run: Run) -> None:
    """Change the record of a run with missing or damaged files so that they are made again.

    If files of the training are damaged, the record loses the training: it is resumed from the last whole checkpoint,
    else repeated. If files of scores are damaged, it loses that stage; scoring then reuses the files that are whole.
    """
    found = damage(run.folder, run.record)
    if not found:
        return
    names = ", ".join(f"{name} {problem}" for name, problem in found.items())
    log.warning("%s: %s; making it again from what is left", run.folder, names)
    if "run.json" in found:
        run.record = {}
        return
    if any(name == CURVES or name.startswith((f"{ADAPTER}/", f"{WHOLE}/")) for name in found):
        run.record["train"] = None
    lost = {name.split("/")[1] for name in found if name.startswith("eval/")}
    run.record["eval"] = {stage: scores for stage, scores in run.record["eval"].items() if stage not in lost}


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
        """What users of the adapter load as its base: a hub id, or the name of a local folder without its path."""
        return Path(self.model.id).name if is_local(self.model) else self.model.id

    @property
    def merged_into(self) -> str:
        """The base of the merged model, by the same names."""
        return Path(self.base.id).name if is_local(self.base) else self.base.id

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
    record, own = finished_record(folder)
    check(folder, score_problems(folder, record, ["tuned"]))
    check(folder, mix_problems(folder))
    stored = replace(own, paths=config.paths, export=config.export)
    model = as_trained(stored.model, record)
    if not stored.lora.enabled:
        name, base = folder.name, config.export.base
        if ADAPTER in listed(config.format):
            raise UserError(f"format=adapter: {name} was trained with lora=none and has none; use merged_16bit or gguf")
        if base is not None:
            raise UserError(f"export.base={base}: {name} is a whole model, which is not merged; leave it out")
    return Finished(folder, record, stored, model, base_of(model, config.export))


def base_of(model: ModelConfig, export: ExportConfig) -> ModelConfig:
    """Return the base in 16 bits that an adapter trained on `model` is merged into; UserError if it must be named."""
    plain = replace(model, quantization=Quantization.none, precision=Precision.auto)
    if export.base is not None:
        return replace(plain, id=export.base, revision=export.base_revision)
    if not is_local(model):
        ending = next((ending for ending in FOUR_BITS if model.id.endswith(ending)), "")
        on_hub = replace(plain, id=model.id.removesuffix(ending), revision=export.base_revision)
        return on_hub if quantized(model) and ending else plain
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
