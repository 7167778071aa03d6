"""Loading a model: to answer, to train every weight, with a fresh LoRA adapter, or as a run trained it."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from tometune.common.distributed import is_first
from tometune.common.errors import UserError, did_you_mean
from tometune.common.hub import hub_errors
from tometune.common.seeding import seed_everything
from tometune.config.model import Backend, Compute, LoraConfig, ModelConfig, Precision, Quantization
from tometune.models.lora_rounding import round_once
from tometune.models.machine import device_name, resolve_precision
from tometune.models.source import ADAPTER, ModelSource, as_saved, fingerprint, quantized

log = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16, Precision.fp32: torch.float32}


def load_model(source: ModelSource) -> Any:
    """Load a causal language model onto the machine's device, in evaluation mode.

    Raises:
        UserError: the hub does not have it, or it has no safetensors.
    """
    model = source.config
    # The bars of transformers and of the hub, for weights and downloads; they would also write into a log.
    on_terminal = sys.stderr.isatty() and is_first()
    (transformers_logging.enable_progress_bar if on_terminal else transformers_logging.disable_progress_bar)()
    dtype = compute_dtype(model.precision)
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": model.attn_implementation}
    if model.quantization is Quantization.nf4 and not model.id.endswith("-bnb-4bit"):
        # QLoRA's storage: NormalFloat4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314).
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    if torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    with hub_errors("model.id", model.id):
        try:
            return _weights(source, **arguments).eval()
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise UserError(
                f"model.id={model.id}: holds no safetensors weights, and others (pickles) can run code when they "
                "are read; convert it, or pick another model"
            ) from error


def _weights(source: ModelSource, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        source.location, revision=source.revision, use_safetensors=True, **arguments
    )


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
    model.load_state_dict(_weights(source, dtype=torch.float32).state_dict())


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
    """Return the model with the adapter of a finished training, under a name; a `PeftModel` may have others.

    Raises:
        UserError: the folder holds no adapter, only a pickled one, or one that does not fit the model.
    """
    absent = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if absent and (folder / "adapter_model.bin").exists():  # PEFT would read it
        raise UserError(
            f"{folder}: holds its weights as a pickle, which can run code when it is read; save it as safetensors"
        )
    if absent:
        raise UserError(
            f"{folder}: holds no adapter ({absent[0]} is missing); name a run whose training finished, or an adapter "
            "with its weights as safetensors (adapter_model.bin is a pickle and is not read)"
        )
    try:
        if isinstance(model, peft.PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=False)
        else:
            model = peft.PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError) as error:
        if "size mismatch" in str(error) or "arget modules" in str(error):
            raise UserError(f"{folder}: the adapter was made for another base model than this one") from error
        raise
    round_once(model)
    return model


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


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of a precision on this machine."""
    resolved = resolve_precision(precision)
    if precision is Precision.auto and resolved is Precision.fp16:
        log.info("this GPU does not compute in bfloat16: model.precision is fp16")
    return DTYPES[resolved]


def check_trainable(model: Any, name: str, lora: LoraConfig, packing: bool) -> None:
    """Raise a `UserError` if the model lacks the layers that get an adapter, is quantised, or cannot read packs."""
    if lora.enabled:
        check_targets(model, lora.target_modules)
    else:
        check_unquantised(model, name)
    if packing:
        check_packs(model)


def check_packs(model: Any) -> None:
    """Raise a `UserError` if layers without attention, e.g. recurrent ones, would mix the conversations of a pack."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    if getattr(model, "_is_stateful", False) or any(not k.endswith("attention") or "linear" in k for k in kinds):
        raise UserError(
            f"trainer.packing=true: layers of {text.model_type} without attention mix the conversations of a pack; set "
            "trainer.packing=false trainer.conversations_per_step=8"
        )


def check_unquantised(model: Any, name: str) -> None:
    """Raise a `UserError` if a model's weights are quantised, which a folder's name does not tell."""
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            f"model.id={name}: its files hold quantised weights, which lora=none cannot train; name the same model in "
            "16 bits, or choose lora=default"
        )


def describe(config: ModelConfig, model: Any, backend: Backend = Backend.transformers) -> dict[str, Any]:
    """Return the entry `model` of run.json: its name, origin, number format, and the backend that trains or scores."""
    return {
        "name": config.name,
        "id": config.id,
        "revision": getattr(model.config, "_commit_hash", None) or fingerprint(config),
        "backend": str(backend),
        "quantization": str(Quantization.nf4 if quantized(config) else Quantization.none),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "device_name": device_name(),
        **({} if config.compute is Compute.default else {"compute": str(config.compute)}),
    }
