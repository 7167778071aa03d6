"""The backend `transformers`: plain Hugging Face weights, in 4 bits through bitsandbytes."""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.config.model import Precision, Quantization
from tometune.models.precision import resolve_precision
from tometune.models.source import ModelSource

log = logging.getLogger(__name__)


def load(source: ModelSource) -> PreTrainedModel:
    """Load a causal language model onto the machine's device.

    Raises:
        UserError: the hub does not have it, or it has no safetensors.
    """
    model = source.config
    transformers_logging.disable_progress_bar()
    dtype = compute_dtype(model.precision)
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": model.attn_implementation}
    if model.quantization is Quantization.nf4 and not model.id.endswith("-bnb-4bit"):
        # QLoRA's storage: NormalFloat4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314).
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    with hub_errors("model.id", model.id):
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                source.location, revision=source.revision, use_safetensors=True, **arguments
            )
        except OSError as error:
            if "safetensors" in str(error):
                raise UserError(
                    f"model.id={model.id}: holds no safetensors weights, and others (pickles) can run code when they "
                    "are read; convert it, or pick another model"
                ) from error
            raise
    return loaded.eval()


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of a precision on this machine; see `tometune.models.precision`."""
    resolved = resolve_precision(precision)
    if precision is Precision.auto and resolved is Precision.fp16:
        log.info("this GPU does not compute in bfloat16: model.precision is fp16")
    return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16, Precision.fp32: torch.float32}[resolved]


def check_unquantised(model: Any, name: str) -> None:
    """Raise a `UserError` if a model's weights are quantised, which a folder's name does not tell."""
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            f"model.id={name}: its files hold quantised weights, which lora=none cannot train; name the same model in "
            "16 bits, or choose lora=default"
        )
