"""A model's norms, rotary embedding and MLPs compiled, so that a step of many rows starts a third of the kernels.

Between two matrix products of a layer lie some thirty kernels over a few rows, each of which takes microseconds however
little it computes. `torch.compile` makes one of several; what stands between them is rounded as before
(`emulate_precision_casts`). Figures are in docs/benchmarks.md; see
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tometune.models.rounding import RoundedOnce

ROTARY = "apply_rotary_pos_emb"
"""Under this name transformers' files of models turn queries and keys."""

COMPILING: dict[str, Any] = {"dynamic": False, "options": {"emulate_precision_casts": True}}


@contextmanager
def fused(model: Any) -> Iterator[None]:
    """Compile a decoder's small parts while the body runs; a part of one kind and shape is compiled once.

    Args:
        model: a causal language model of transformers, with or without an adapter; what it lacks stays as it is.
    """
    layers: list[nn.Module] = list(getattr(model.get_decoder(), "layers", []))
    inside = [part for layer in layers for part in layer.modules()]
    parts = [part for part in inside if _is_small(part)]
    homes = {type(part).__module__: vars(sys.modules[type(part).__module__]) for part in inside}
    before: dict[str, Callable[..., Any]] = {home: names[ROTARY] for home, names in homes.items() if ROTARY in names}
    try:
        for part in parts:
            part.compile(**COMPILING)
        for home, rotary in before.items():
            homes[home][ROTARY] = torch.compile(rotary, **COMPILING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TensorFloat32")  # an adapter's products are meant to be float32
            yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
        for home, rotary in before.items():
            homes[home][ROTARY] = rotary


def _is_small(part: nn.Module) -> bool:
    """Tell whether a part of a layer is one to compile: by the names of transformers' classes, or a LoRA layer."""
    return type(part).__name__.endswith(("Norm", "MLP")) or isinstance(part, RoundedOnce)
