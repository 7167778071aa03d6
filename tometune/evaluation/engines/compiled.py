"""Compiled norms, rotary embedding, MLPs and LoRA layers, so that a step starts half as many kernels.

Between the matrix products of a layer there are about thirty small kernels, which read and write all rows or take
microseconds each. `torch.compile` merges several into one; values that are no longer stored in between are still
rounded (`emulate_precision_casts`), but sums over a row are made in another order. See docs/benchmarks.md for numbers
and https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tometune.config.eval import FEW
from tometune.models.lora_rounding import RoundedOnce

ROTARY = "apply_rotary_pos_emb"  # the function in transformers' model files that rotates queries and keys
# With dynamic shapes, one compilation serves prompts and steps of any number of rows.
OPTIONS: dict[str, Any] = {"dynamic": True, "options": {"emulate_precision_casts": True}}


class CompiledParts:
    """The compiled parts of a decoder's layers; parts of the same kind and size share one compilation."""

    def __init__(self, model: Any, wanted: bool = True) -> None:
        """Find the parts of a causal language model, if wanted; each is compiled when it is first used."""
        layers: list[nn.Module] = list(getattr(model.get_decoder(), "layers", [])) if wanted else []
        inside = [part for layer in layers for part in layer.modules()]
        modules = {type(part).__module__: vars(sys.modules[type(part).__module__]) for part in inside}
        self.works = wanted  # False too after compiling has failed
        self._modules = {module: names for module, names in modules.items() if ROTARY in names}
        self._rotary = {module: torch.compile(names[ROTARY], **OPTIONS) for module, names in self._modules.items()}
        self._calls: dict[nn.Module, Any] = {}
        for part in inside:
            if type(part).__name__.endswith(("Norm", "MLP")) or isinstance(part, RoundedOnce):
                part.compile(**OPTIONS)
                self._calls[part], part._compiled_call_impl = part._compiled_call_impl, None

    def used_for(self, rows: int) -> bool:
        """Return whether passes over this many rows use them."""
        return self.works and rows > FEW

    @contextmanager
    def compiled(self, rows: int) -> Iterator[None]:
        """Use them in the body, if there are many rows and compiling works."""
        if not self.used_for(rows):
            yield
            return
        originals: dict[str, Callable[..., Any]] = {module: names[ROTARY] for module, names in self._modules.items()}
        try:
            for part, call in self._calls.items():
                part._compiled_call_impl = call
            for module, rotary in self._rotary.items():
                self._modules[module][ROTARY] = rotary
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32")  # an adapter's products stay in float32
                yield
        finally:
            for part in self._calls:
                part._compiled_call_impl = None
            for module, rotary in originals.items():
                self._modules[module][ROTARY] = rotary
