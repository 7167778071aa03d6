"""A model whose every weight is trained (`lora=none`): how it is loaded for that, and how it is read back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.config.lora import LoraConfig
from tometune.config.model import Precision
from tometune.models.adapter import check_targets, load_adapter
from tometune.models.load import load_model
from tometune.models.saved import ADAPTER, as_saved
from tometune.models.source import ModelSource


def load_to_train(source: ModelSource) -> Any:
    """Return the model with all weights trainable, in float32.

    The arithmetic of training may have 16 bits all the same (autocast): a weight in bfloat16 keeps 8 significant bits,
    which a step of a usual learning rate is lost in (Micikevicius et al. 2018, arXiv:1710.03740).

    Raises:
        UserError: the hub does not give it, it holds no safetensors, or its files hold quantised weights.
    """
    loaded = load_model(replace(source, config=replace(source.config, precision=Precision.fp32)))
    check_unquantised(loaded, source.config.id)
    return loaded.requires_grad_(True)


def published(source: ModelSource) -> tuple[Any, Any]:
    """Return the config and the generation config of the model before training, as its author wrote them.

    Raises:
        UserError: the hub does not give them, or transformers would refuse to save the model with them.
    """
    name, revision = source.location, source.revision
    with hub_errors("model.id", source.config.id):
        config = AutoConfig.from_pretrained(name, revision=revision)
        try:
            generation = GenerationConfig.from_pretrained(name, revision=revision)
        except OSError:  # few models have none
            generation = GenerationConfig.from_model_config(config)
    try:
        generation.validate(strict=True)
    except ValueError as error:
        why = next((line.strip("- ") for line in str(error).splitlines()[1:]), str(error))
        raise UserError(
            f"model.id={source.config.id}: lora=none saves the whole model, which transformers refuses to do with its "
            f"generation_config.json ({why}); mend that file in a copy of the model and name its folder"
        ) from error
    return config, generation


def check_trainable(model: Any, name: str, lora: LoraConfig) -> None:
    """Check that a model can be trained: it has the layers that get an adapter, or weights that are not quantised.

    Raises:
        UserError: it cannot.
    """
    if lora.enabled:
        check_targets(model, lora.target_modules)
    else:
        check_unquantised(model, name)


def check_unquantised(model: Any, name: str) -> None:
    """Check that a model's weights are numbers that can be trained; a folder's name does not show it.

    Raises:
        UserError: they are quantised.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            f"model.id={name}: its files hold quantised weights, which lora=none cannot train; name the same model in "
            "16 bits, or choose lora=default"
        )


def tuned(model: Any, source: ModelSource, lora: LoraConfig, run: Path) -> Any:
    """Return the model that a run trained: the base model with its adapter, or the whole model.

    Args:
        model: the base model, which gets the adapter; None loads it.
        source: of the base model.
        lora: of the run.
        run: its folder.

    Raises:
        UserError: the folder holds no trained model, or one for another base model.
    """
    if lora.enabled:
        return load_adapter(load_model(source) if model is None else model, run / ADAPTER)
    saved = as_saved(source.config, run)
    return load_model(ModelSource(saved, saved.id, None))
