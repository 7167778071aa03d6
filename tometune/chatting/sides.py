"""What is asked: a run, a model or a GGUF file, and what answers beside it; found without loading anything."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tometune.config.errors import UserError
from tometune.config.model import ModelConfig, Weights
from tometune.config.root import Config
from tometune.config.stored import stored_config, with_command_line
from tometune.evaluation.subject import run_folder
from tometune.hub import is_commit
from tometune.models.load import fingerprint
from tometune.run import read_record

log = logging.getLogger(__name__)

BASE = "base"
"""What `against` is called where the run's own base answers beside it."""


@dataclass(frozen=True)
class Side:
    """One of the models that answer."""

    label: str
    model: ModelConfig | None = None
    """The base; None for a GGUF file, which holds everything."""

    adapter: Path | None = None
    gguf: Path | None = None


def find_sides(config: Config) -> list[Side]:
    """Return what the command line names, one or two.

    Raises:
        UserError: there is no such run or file, the run is unfinished, or its base is gone or another one.
    """
    if config.gguf is not None and config.run is not None:
        raise UserError("gguf and run: name one of them; to compare them: run=… against=FILE.gguf")
    first = _first(config)
    if config.against is None:
        return [first]
    if config.against == BASE:
        if first.adapter is None or first.model is None:
            raise UserError("against=base: only a run has a base beside it; name a run=… or another one in against=…")
        return [Side(f"{first.model.name} (base)", first.model), first]
    if config.against.endswith(".gguf"):
        return [first, _gguf("against", config.against)]
    return [first, _run(config, "against", config.against)]


def _first(config: Config) -> Side:
    """Return the first of them."""
    if config.gguf is not None:
        return _gguf("gguf", config.gguf)
    if config.run is not None:
        return _run(config, "run", config.run)
    _check_there("model", config.model)
    return Side(config.model.name, config.model)


def _gguf(key: str, name: str) -> Side:
    """Return a GGUF file.

    Raises:
        UserError: it is not there, or not a GGUF file.
    """
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{key}={name}: cannot be read ({error.strerror}); name a GGUF file") from None
    if magic != b"GGUF":
        raise UserError(f"{key}={name}: is not a GGUF file; name one, e.g. {key}=model-q8_0.gguf")
    return Side(path.stem, gguf=path)


def _run(config: Config, key: str, name: str) -> Side:
    """Return a finished run: its base at the commit it was trained on, and its adapter."""
    folder = _folder(config, key, name)
    record = read_record(folder)
    adapter = folder / "adapter"
    if not (adapter / "adapter_config.json").exists():
        raise UserError(f"{key}={name}: holds no adapter (status {record['status']}); finish its training first")
    model = with_command_line(stored_config(folder), config).model
    _check_there(f"{key}={name}", model)
    _check_same(f"{key}={name}", model, record["model"], adapter)
    trained_on = record["model"]["revision"]
    if model.id == record["model"]["id"] and is_commit(trained_on):
        model = replace(model, revision=trained_on)
    return Side(record["run_id"], model, adapter)


def _folder(config: Config, key: str, name: str) -> Path:
    """Return the folder of a run: a path, an id under `paths.outputs`, or an id in a sweep.

    Raises:
        UserError: there is none.
    """
    try:
        return run_folder(name, Path(config.paths.outputs).expanduser())
    except UserError:
        found = sorted(Path(config.paths.multirun).expanduser().glob("*/*/run.json"))
        folders = [file.parent for file in found if file.parent.name == name]
        if folders:
            return folders[-1]
        fix = f"e.g. {key}=outputs/<run_id>"
        raise UserError(f"{key}={name}: no such folder, nor a run of that id; name a run folder, {fix}") from None


def _check_there(where: str, model: ModelConfig) -> None:
    """Check that a base that was a folder is still one.

    Raises:
        UserError: it is gone.
    """
    local = model.id.startswith(("/", "~", ".")) or model.id.count("/") != 1
    if model.weights is Weights.pretrained and local and not Path(model.id).expanduser().is_dir():
        raise UserError(
            f"{where}: its base model {model.id} is gone; put it back, or say where it is now with model.id=…"
            if where != "model"
            else f"model.id={model.id}: no such folder; name one, or a hub id (user/name)"
        )


def _check_same(where: str, model: ModelConfig, trained: dict[str, Any], adapter: Path) -> None:
    """Check that the adapter belongs to the base.

    The content of a folder is compared; a hub id is another base only where the shapes say so, when it is loaded.

    Raises:
        UserError: it does not.
    """
    said = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    made_for = said.get("base_model_name_or_path") or trained["id"]
    now = fingerprint(model) if Path(model.id).expanduser().is_dir() else trained["revision"]
    before = str(trained["revision"])
    if before.startswith(("folder-", "tiny-")) and now.startswith(("folder-", "tiny-")) and now != before:
        raise UserError(
            f"{where}: its adapter was made for another base ({made_for}) than {model.id}; put that one back, or name "
            "it with model.id=…"
        )
    if model.id != trained["id"]:
        log.warning("%s: was trained on %s and is put on %s", where, trained["id"], model.id)
