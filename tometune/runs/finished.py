"""A finished run: its record, what it trained, the base model it had, and whether its files are whole."""

import json
from collections.abc import Iterable
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
from tometune.models.saved import ADAPTER, WHOLE, as_saved
from tometune.models.source import fingerprint, quantized
from tometune.runs.run import read_record
from tometune.runs.scored import run_folder
from tometune.runs.stored import stored_config

AGAIN = "run the run's command again"


def check_adapter(folder: Path) -> None:
    """Check that an adapter's files are there and whole; of the weights only the head is read.

    Raises:
        UserError: they are not, or only as a pickle.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").exists()
            why = "holds its weights as a pickle, which can run code when it is read" if pickled else f"holds no {name}"
            raise UserError(f"{folder}: {why}; {AGAIN}")
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not (config["target_modules"] and float(config["lora_alpha"]) and int(config["r"]) > 0):
            raise ValueError("no LoRA")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the config of a LoRA adapter; {AGAIN}") from None
    path = folder / "adapter_model.safetensors"
    if not any(".lora_A." in name for name in _tensors(path)):
        raise UserError(f"{path}: holds no LoRA weights; {AGAIN}")


def check_trained(run: Path, adapter: bool) -> None:
    """Check that what a run trained is there and whole.

    Args:
        run: its folder.
        adapter: whether that is an adapter; else it is a whole model.

    Raises:
        UserError: it is not.
    """
    if adapter:
        check_adapter(run / ADAPTER)
    else:
        check_whole(run / WHOLE)


def check_whole(folder: Path) -> None:
    """Check that a whole model's files are there and whole; of the weights only the heads are read.

    Raises:
        UserError: they are not.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; {AGAIN}")
    index = folder / "model.safetensors.index.json"
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    except (ValueError, KeyError):
        raise UserError(f"{index}: not an index of files of weights; {AGAIN}") from None
    for name in sorted(set(places.values())) or ["model.safetensors"]:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; {AGAIN}")
        _tensors(folder / name)


def _tensors(path: Path) -> list[str]:
    """Return the names in a file of weights.

    Raises:
        UserError: it is broken.
    """
    try:
        with safe_open(path, framework="np") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: broken or cut off ({error}); {AGAIN}") from None


def check_examples(folder: Path, tasks: Iterable[str]) -> None:
    """Check that there are answers to hold exports against: `<task>.jsonl` of each task, none of them empty.

    Raises:
        UserError: one is missing or empty.
    """
    for task in tasks:
        path = folder / f"{task}.jsonl"
        if not path.is_file() or not path.stat().st_size:
            why = "is empty" if path.is_file() else "no such file"
            raise UserError(f"{path}: {why}; score the run again with python -m tometune.evaluate run=…")


@dataclass(frozen=True)
class Finished:
    """A run whose training and scoring are done."""

    folder: Path
    record: dict[str, Any]
    """What run.json says."""

    config: Config
    """The run's own, with the cache of this command."""

    model: ModelConfig
    """The base as it was trained on, at the revision that was read then."""

    base: ModelConfig
    """The base in 16 bits or more, which the adapter is merged into; of a whole model, what it was before."""

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.folder / ADAPTER

    @property
    def whole(self) -> ModelConfig | None:
        """The whole model that was trained, to be loaded as any other; None where an adapter was trained."""
        return None if self.config.lora.enabled else as_saved(self.model, self.folder)

    @property
    def tuned(self) -> str:
        """What exports are held against, in words."""
        return "the adapter" if self.whole is None else "the run's model"

    @property
    def before(self) -> str:
        """What was there before training, in words."""
        return "the base without the adapter" if self.whole is None else "the model before training"

    @property
    def base_name(self) -> str:
        """What the adapter's users load as its base: a hub id, or the name of the folder it was."""
        return Path(self.model.id).name if is_local(self.model) else self.model.id

    @property
    def merged_into(self) -> str:
        """What the base that is merged into is called: a hub id, or the name of its folder."""
        return Path(self.base.id).name if is_local(self.base) else self.base.id

    def digest(self) -> str:
        """Return the sha256 of the adapter's weights and config; of a whole model, what identifies its files."""
        if self.whole is not None:
            return fingerprint(self.whole)
        digest = sha256()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update((self.adapter / name).read_bytes())
        return digest.hexdigest()


def find_finished(config: Config) -> Finished:
    """Return the run that `run=…` names; writes nothing.

    Raises:
        UserError: there is none, it is not finished, its files are broken, its base is gone or another one now, or none
            in 16 bits is known.
    """
    if config.run is None:
        raise UserError("run: missing; name a finished run, e.g. run=outputs/<run_id>")
    folder = run_folder(config.run, Path(config.paths.outputs).expanduser())
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(
            f"{folder}: not finished (status {record['status']}); run its command again, it goes on from there"
        )
    stored = stored_config(folder)
    check_trained(folder, stored.lora.enabled)
    check_examples(folder / "eval" / "tuned", stored.eval.tasks)
    model = as_trained(stored.model, record)
    stored = replace(stored, paths=config.paths, export=config.export)
    if not stored.lora.enabled:
        check_asked_of_whole(config, folder)
    return Finished(folder, record, stored, model, base_of(model, config.export))


def check_asked_of_whole(config: Config, folder: Path) -> None:
    """Check that nothing of an adapter is asked for of a run that trained every weight.

    Raises:
        UserError: it is.
    """
    if ADAPTER in listed(config.format):
        raise UserError(
            f"format=adapter: {folder.name} was trained with lora=none and has none; export format=merged_16bit or gguf"
        )
    if config.export.base is not None:
        raise UserError(
            f"export.base={config.export.base}: {folder.name} is a whole model and is merged into none; leave it out"
        )


def is_local(model: ModelConfig) -> bool:
    """Tell whether a model is a folder of this machine."""
    return model.weights is Weights.pretrained and Path(model.id).expanduser().is_dir()


def base_of(model: ModelConfig, export: ExportConfig) -> ModelConfig:
    """Return the base in 16 bits that an adapter trained on `model` is merged into.

    Raises:
        UserError: it has to be named.
    """
    plain = replace(model, quantization=Quantization.none, precision=Precision.auto)
    if export.base is not None:
        return replace(plain, id=export.base, revision=export.base_revision)
    if not stored_in_4_bits(model):
        return plain
    for ending in FOUR_BITS:
        if model.id.endswith(ending) and not is_local(model):
            return replace(plain, id=model.id.removesuffix(ending), revision=export.base_revision)
    raise UserError(
        f"export.base: missing; {model.id} is stored in 4 bits, name the same model in 16 bits, e.g. "
        "export.base=unsloth/Llama-3.2-3B-Instruct"
    )


def stored_in_4_bits(model: ModelConfig) -> bool:
    """Tell whether the files of the base hold 4-bit weights, which cannot be merged into."""
    if is_local(model):
        config = json.loads((Path(model.id).expanduser() / "config.json").read_text(encoding="utf-8"))
        return "quantization_config" in config
    return quantized(model) and model.id.endswith(FOUR_BITS)


def as_trained(model: ModelConfig, record: dict[str, Any]) -> ModelConfig:
    """Return the base at the revision the run read.

    Raises:
        UserError: it is a folder or package that is gone, or that holds something else now.
    """
    then = str(record["model"]["revision"])
    if is_commit(then):
        return replace(model, revision=then)
    if model.weights is Weights.pretrained and Path(model.id).is_absolute() and not Path(model.id).exists():
        raise UserError(f"model.id={model.id}: the base of this run is gone; put the folder back where it was")
    now = fingerprint(model)
    if now != then:
        raise UserError(
            f"model.id={model.id}: not the base this adapter was trained on (that was {then}, this is {now}); put it "
            "back, or train again"
        )
    return model


__all__ = ["as_trained", "check_adapter", "check_trained", "finished_record"]


def finished_record(folder: Path) -> dict[str, Any]:
    """Return what run.json says of a run whose training and scoring are done.

    Raises:
        UserError: they are not, or the files of the adapter or of the whole model are not there.
    """
    record = read_record(folder)
    if record["status"] != "completed":
        raise UserError(
            f"{folder}: not finished (status {record['status']}); run its command again, it goes on from there"
        )
    check_trained(folder, stored_config(folder).lora.enabled)
    return record
