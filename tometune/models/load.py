"""Loading a model: whether this machine can hold it, by which backend it trains, and a description for run.json."""

import platform
from importlib import util
from typing import Any

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.common.hub import HERE
from tometune.config.model import Backend, ModelConfig, Precision, Quantization
from tometune.models import unsloth_backend
from tometune.models.source import ModelSource, fingerprint, quantized


def check_machine(model: ModelConfig) -> None:
    """Raise a `UserError` if this machine has no GPU or package to load the model; nothing is downloaded."""
    import torch

    if model.attn_implementation == "flash_attention_2" and util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attn_implementation=flash_attention_2: needs the package flash-attn; install it, or set "
            "model.attn_implementation=sdpa"
        )
    gpu = torch.cuda.is_available()
    if model.backend is Backend.unsloth:
        unsloth_backend.check_installed()
        if processes() > 1:
            raise UserError(
                "model.backend=unsloth: trains in one process, torchrun started several; set model.backend=transformers"
            )
    if quantized(model) and not gpu:
        raise UserError(
            f"model={model.name}: its 4-bit weights (model.quantization=nf4) need an NVIDIA GPU, none was found; on "
            f"this machine: {HERE}"
        )
    if quantized(model) and util.find_spec("bitsandbytes") is None:
        raise UserError(
            f'model={model.name}: 4-bit weights need bitsandbytes; run: pip install "tometune[gpu]" '
            "(or take a 16-bit model and model.quantization=none)"
        )
    if model.precision is Precision.fp16 and not gpu:
        raise UserError("model.precision=fp16: needs a GPU; set model.precision=auto")


def resolve_backend(model: ModelConfig) -> Backend:
    """Return the backend that trains the model: `auto` is unsloth on one NVIDIA GPU where it is installed."""
    if model.backend is not Backend.auto:
        return model.backend
    import torch

    one_gpu = torch.cuda.is_available() and torch.version.hip is None and processes() == 1
    return Backend.unsloth if one_gpu and unsloth_backend.installed() else Backend.transformers


def device_name() -> str:
    """Return the name of the GPU, or of the processor with the number of threads."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def free_memory() -> None:
    """Free GPU memory that nothing uses any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_model(source: ModelSource) -> Any:
    """Return the model on its device, in evaluation mode; see `tometune.models.transformers_backend.load`."""
    from tometune.models import transformers_backend

    return transformers_backend.load(source)


def describe(config: ModelConfig, model: Any) -> dict[str, Any]:
    """Return the entry `model` of run.json: its name, origin, backend and number format."""
    return {
        "name": config.name,
        "id": config.id,
        "revision": getattr(model.config, "_commit_hash", None) or fingerprint(config),
        "backend": str(resolve_backend(config)),
        "quantization": str(Quantization.nf4 if quantized(config) else Quantization.none),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "device_name": device_name(),
    }
