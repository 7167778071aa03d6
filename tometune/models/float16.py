"""The type of a model's weights: float16 where its range allows.

float16 has three significant bits more than bfloat16, in which a short training is partly lost, but a smaller range.
Programs compute in the type of a file, so activations have to be in the range, too.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tometune.common.errors import UserError
from tometune.config.model import Precision

log = logging.getLogger(__name__)

DTYPES = {Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}

MARGIN = 2
"""Activations on other texts may be so many times larger than those that were measured."""


def resolve_dtype(wanted: Precision, weights: Mapping[str, torch.Tensor], activation: float) -> torch.dtype:
    """Return the type to write weights in: as wanted; `auto` is float16 if its range allows, else float32.

    `activation` is the largest one measured.

    Raises:
        UserError: float16 was asked for, and a weight is beyond its range.
    """
    if wanted not in (Precision.auto, Precision.fp16):
        return DTYPES[wanted]
    most = torch.finfo(torch.float16).max
    weight = max(float(weights[name].abs().max()) for name in weights)
    if wanted is Precision.fp16 and not weight <= most:
        raise UserError(f"export.dtype=fp16: a weight is {weight:.3g}, beyond float16 ({most:.0f}); leave it out")
    if wanted is Precision.fp16 or max(weight, MARGIN * activation) <= most:
        return torch.float16
    log.warning(
        "merged_16bit: in float32, because a weight of %.3g or an activation of %.3g is too near the end of float16; "
        "export.dtype=bf16 takes half the space and loses small changes",
        weight,
        activation,
    )
    return torch.float32


@contextmanager
def largest_activation(model: torch.nn.Module) -> Iterator[list[float]]:
    """Yield a list of one number: the largest absolute value that a module reads or returns while the body runs."""
    largest = [0.0]

    def note(_: torch.nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        values = [one for one in (*given, returned) if isinstance(one, torch.Tensor) and one.is_floating_point()]
        largest[0] = max(largest[0], *(float(one.detach().abs().max()) for one in values), 0.0)

    # Not on the parts of LoRA layers: with hooks there, these layers round in another way (models/lora_rounding.py).
    watched = [one for name, one in model.named_modules() if "base_layer" not in name and "lora_" not in name]
    hooks = [one.register_forward_hook(note) for one in watched]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
