"""The LoRA adapter: made from a seed, or loaded."""

import json
from pathlib import Path
from typing import Any

import peft
from torch import nn

from tometune.common.errors import UserError, did_you_mean
from tometune.common.seeding import seed_everything
from tometune.config.model import LoraConfig
from tometune.models.lora_rounding import round_once


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> peft.PeftModel:
    """Return the model with a fresh adapter; the same seed gives the same weights, bit for bit.

    The adapter's weights are float32 whatever the dtype of the base (PEFT's `autocast_adapter_dtype`).

    Raises:
        UserError: a name in `lora.target_modules` matches no linear layer.
    """
    check_targets(model, lora.target_modules)
    seed_everything(seed)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **peft_settings(lora)))
    round_once(made)
    return made


def peft_settings(lora: LoraConfig) -> dict[str, Any]:
    """Return the arguments of PEFT, and of Unsloth, that describe an adapter."""
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    return {name: getattr(lora, name) for name in names} | {"target_modules": list(lora.target_modules), "bias": "none"}


def load_adapter(model: Any, folder: Path, name: str = "default") -> peft.PeftModel:
    """Return the model with the adapter of a finished training, under a name.

    Raises:
        UserError: the folder holds no adapter, only a pickled one, or one that does not fit the model.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        raise UserError(f"{folder}: holds no adapter; name a run whose training finished")
    check_safetensors(folder)
    check_targets(model, json.loads(path.read_text(encoding="utf-8"))["target_modules"])
    try:
        loaded = peft.PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
    except RuntimeError as error:
        if "size mismatch" in str(error):
            raise UserError(f"{folder}: the adapter was made for another base model than this one") from error
        raise
    round_once(loaded)
    return loaded


def check_safetensors(folder: Path) -> None:
    """Raise a `UserError` unless an adapter's weights are safetensors; without them PEFT reads a pickle."""
    if (folder / "adapter_model.safetensors").is_file():
        return
    if (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder}: holds its weights as a pickle, which can run code when it is read; save it as safetensors"
        )
    raise UserError(f"{folder}: holds no adapter_model.safetensors; name a run whose training finished")


def check_targets(model: nn.Module, targets: list[str]) -> None:
    """Raise a `UserError` unless each target names a linear layer of the model."""
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    }
    for target in targets:
        if target not in linear:
            near = did_you_mean(target, sorted(linear))
            raise UserError(
                f"lora.target_modules: no layer is named {target}{near} (there are: {', '.join(sorted(linear))})"
            )
