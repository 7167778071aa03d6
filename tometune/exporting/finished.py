"""A finished run, as exports need it: its record, what it trained, the base it had and the one that is exported."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.config.errors import UserError
from tometune.config.export import ExportConfig, listed
from tometune.config.model import FOUR_BITS, ModelConfig, Precision, Quantization, Weights
from tometune.config.root import Config
from tometune.config.stored import stored_config
from tometune.evaluation.subject import run_folder
from tometune.exporting.checks import check_examples, check_trained
from tometune.hub import is_commit
from tometune.models.load import fingerprint, quantized
from tometune.models.saved import ADAPTER, as_saved
from tometune.run import read_record


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
    model = _as_trained(stored.model, record)
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


def _as_trained(model: ModelConfig, record: dict[str, Any]) -> ModelConfig:
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
