"""An adapter that is published by itself, in a folder or on the hub: which base it is for, and its files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.hub import commit_of, hub_errors
from tometune.config.model import ModelConfig, Weights
from tometune.models import smollm2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def published_adapter(model: ModelConfig) -> tuple[ModelConfig, Path] | None:
    """Return the base and the folder of the adapter that `model.id` names; None where it names no adapter.

    Of one on the hub only the config is fetched: see `fetch`.

    Raises:
        UserError: the adapter does not say which base it is for.
    """
    if model.weights is Weights.random or model.id == smollm2.HUB_ID:
        return None
    folder = Path(model.id).expanduser()
    file: Path | None = folder / CONFIG
    if not folder.is_dir():
        file = _on_hub(model)
    elif (folder / "config.json").exists():  # a whole model
        return None
    if file is None or not file.is_file():
        return None
    said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    base = said.get("base_model_name_or_path")
    if not base:
        raise UserError(f"model.id={model.id}: its {CONFIG} names no base; merge it, or name a run")
    revision = said.get("revision") or "main"
    return replace(model, id=str(base), name=f"{model.id} on {base}", revision=revision), file.parent


def _on_hub(model: ModelConfig) -> Path | None:
    """Return the config of an adapter on the hub; None where there is none, or nothing: loading says what."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        commit = commit_of("model.id", model.id, model.revision, "model")
        with hub_errors("model.id", model.id):
            return Path(hf_hub_download(model.id, CONFIG, revision=commit))
    except (UserError, EntryNotFoundError):
        return None


def fetch(adapter: Path, repository: str, revision: str) -> None:
    """Fetch the weights of an adapter on the hub, into the folder where its config is.

    Raises:
        UserError: the hub does not give them, or has no safetensors.
    """
    from huggingface_hub import hf_hub_download

    if not (adapter / WEIGHTS).exists():
        with hub_errors("model.id", repository):
            hf_hub_download(repository, WEIGHTS, revision=commit_of("model.id", repository, revision, "model"))
