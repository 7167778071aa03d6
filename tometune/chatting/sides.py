"""What is asked: a run, a model or a GGUF file, and what answers beside it; found without loading anything."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tometune.chatting.published import published_adapter
from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Weights
from tometune.config.root import Config
from tometune.models.saved import as_saved
from tometune.runs.finished import as_trained, finished_record
from tometune.runs.stored import run_folder, stored_config, with_command_line

log = logging.getLogger(__name__)

BASE = "base"
"""What `against` is called where the run's own base answers beside it."""


@dataclass(frozen=True)
class Side:
    """One of the models that answer."""

    label: str
    model: ModelConfig | None = None
    """The base, or a whole model that was trained; None for a GGUF file, which holds everything."""

    adapter: Path | None = None
    published: ModelConfig | None = None
    """Where the adapter is from, if from a hub or folder of its own: `model.*` of the command line."""

    gguf: Path | None = None
    before: ModelConfig | None = None
    """What a whole model was before its training."""


def find_sides(config: Config) -> list[Side]:
    """Return what the command line names, one or two.

    Raises:
        UserError: there is no such run or file, the run is unfinished, or its base is gone or another one now.
    """
    if config.gguf is not None and config.run is not None:
        raise UserError("gguf and run: name one of them; to compare them: run=… against=FILE.gguf")
    first = _first(config)
    if config.against is None:
        return [first]
    if config.against == BASE:
        base = first.model if first.adapter is not None else first.before
        if base is None:
            raise UserError(
                "against=base: only a run or an adapter has a base beside it; name a run=… or another one in against=…"
            )
        if first.before is not None:
            where = f"run={config.run}"
            _check_there(where, base)
            base = _same_base(where, base, finished_record(_folder(config, "run", str(config.run))))
        return [Side(f"{base.name} (base)", base), first]
    if config.against.endswith(".gguf") or any(Path(config.against).expanduser().glob("*.gguf")):
        return [first, _gguf("against", config.against)]
    return [first, _run(config, "against", config.against)]


def _first(config: Config) -> Side:
    """Return the first of them."""
    if config.gguf is not None:
        return _gguf("gguf", config.gguf)
    if config.run is not None:
        return _run(config, "run", config.run)
    _check_there("model", config.model)
    if (found := published_adapter(config.model)) is not None:
        base, adapter = found
        _check_there(f"model.id={config.model.id}", base)
        return Side(config.model.id, base, adapter, published=config.model)
    return Side(config.model.name, config.model)


def _gguf(key: str, name: str) -> Side:
    """Return a GGUF file, or the one in a folder, as exports have it.

    Raises:
        UserError: it is not there, not a GGUF file, or the folder holds none or several.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            held = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{key}={name}: a folder with one GGUF file is wanted, it holds {held}; name a file")
        path = files[0]
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{key}={name}: cannot be read ({error.strerror}); name a GGUF file") from None
    if magic != b"GGUF":
        raise UserError(f"{key}={name}: is not a GGUF file; name one, e.g. {key}=model-q8_0.gguf")
    return Side(path.stem, gguf=path)


def _run(config: Config, key: str, name: str) -> Side:
    """Return a finished run: its base as it was trained on, and its adapter; or the whole model that it trained."""
    folder = _folder(config, key, name)
    record = finished_record(folder)
    stored = with_command_line(stored_config(folder), config)
    model = stored.model
    if not stored.lora.enabled:  # needs its base only where that is to answer beside it
        whole = replace(as_saved(model, folder), name=record["run_id"])
        return Side(record["run_id"], whole, before=model)
    _check_there(f"{key}={name}", model)
    return Side(record["run_id"], _same_base(f"{key}={name}", model, record), folder / "adapter")


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
    local = model.id.startswith(("/", "~", ".")) or model.id.count("/") > 1
    if model.weights is Weights.pretrained and local and not Path(model.id).expanduser().is_dir():
        raise UserError(
            f"{where}: its base model {model.id} is gone; put it back, or say where it is now with model.id=…"
            if where != "model"
            else f"model.id={model.id}: no such folder; name one, or a hub id (user/name)"
        )


def _same_base(where: str, model: ModelConfig, record: dict[str, Any]) -> ModelConfig:
    """Return the base as the run read it; another one that the command line names must hold the same where that shows.

    A hub id in the place of another is known for another base only where the shapes say so, when it is loaded.

    Raises:
        UserError: it is not the base that the adapter was trained on.
    """
    trained = record["model"]
    local = model.weights is Weights.random or Path(model.id).expanduser().is_dir()
    content = str(trained["revision"]).startswith(("folder-", "tiny-"))
    if model.id != trained["id"] and not (local and content):
        log.warning("%s: was trained on %s and is put on %s", where, trained["id"], model.id)
        return model
    try:
        return as_trained(model, record)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
