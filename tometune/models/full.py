"""Full fine-tuning (`lora=none`): loading a model to train every weight, and the trained model of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.config.model import LoraConfig, Precision
from tometune.models.adapter import check_targets, load_adapter
from tometune.models.load import load_model
from tometune.models.saved import ADAPTER, as_saved
from tometune.models.source import ModelSource
from tometune.models.transformers_backend import check_unquantised


def load_to_train(source: ModelSource) -> Any:
    """Return the model with all weights trainable, in float32.

    Training may still compute in 16 bits (autocast). Weights in bfloat16 keep 8 significant bits, in which the steps of
    a usual learning rate are lost (Micikevicius et al. 2018, arXiv:1710.03740).

    Raises:
        UserError: the hub does not have it, it has no safetensors, or its files hold quantised weights.
    """
    loaded = load_model(replace(source, config=replace(source.config, precision=Precision.fp32)))
    check_unquantised(loaded, source.config.id)
    return loaded.requires_grad_(True)


def restore(model: Any, source: ModelSource) -> None:
    """Copy the weights of the source into the model, to start its training again.

    Reading them a second time saves a copy of all weights in host memory during every training.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        source.location, revision=source.revision, dtype=torch.float32, use_safetensors=True
    )
    model.load_state_dict(loaded.state_dict())


def author_configs(source: ModelSource) -> tuple[Any, Any]:
    """Return the config and the generation config of a model as its author wrote them.

    Raises:
        UserError: the hub does not have them, or transformers would refuse to save a model with them.
    """
    with hub_errors("model.id", source.config.id):
        config = AutoConfig.from_pretrained(source.location, revision=source.revision)
        try:
            generation = GenerationConfig.from_pretrained(source.location, revision=source.revision)
        except OSError:  # few models have none
            generation = GenerationConfig.from_model_config(config)
    try:
        generation.validate(strict=True)
    except ValueError as error:
        why = next((line.strip("- ") for line in str(error).splitlines()[1:]), str(error))
        raise UserError(
            f"model.id={source.config.id}: lora=none saves the whole model, which transformers refuses because of its "
            f"generation_config.json ({why}); fix that file in a copy of the model and name its folder"
        ) from error
    return config, generation


def check_trainable(model: Any, name: str, lora: LoraConfig) -> None:
    """Raise a `UserError` unless the model has the layers that get an adapter, or weights that are not quantised."""
    if lora.enabled:
        check_targets(model, lora.target_modules)
    else:
        check_unquantised(model, name)


def load_tuned(model: Any, source: ModelSource, lora: LoraConfig, run: Path) -> Any:
    """Return the model that the run in a folder trained: the base model with its adapter, or the whole model.

    The base model is loaded from the source if `model` is None.

    Raises:
        UserError: the folder holds no trained model, or one for another base model.
    """
    if lora.enabled:
        return load_adapter(load_model(source) if model is None else model, run / ADAPTER)
    saved = as_saved(source.config, run)
    return load_model(ModelSource(saved, saved.id, None))
