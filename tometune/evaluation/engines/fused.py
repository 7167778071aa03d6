"""A model's norms, rotary embedding, MLPs and LoRA layers compiled, so that a step starts half as many kernels.

Between the matrix products of a layer lie some thirty kernels, each of which reads and writes all rows, or takes
microseconds however few there are. `torch.compile` makes one of several; what it leaves out in between is rounded all
the same (`emulate_precision_casts`), but sums over a row are made in another order. Figures: docs/benchmarks.md; see
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.
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

ROTARY = "apply_rotary_pos_emb"
"""Under this name transformers' files of models turn queries and keys."""

COMPILING: dict[str, Any] = {"dynamic": True, "options": {"emulate_precision_casts": True}}
"""Of one compilation for prompts and for steps of any number of rows."""


class SmallParts:
    """The small parts of a decoder's layers, compiled; those of one kind and size are compiled once for all layers."""

    def __init__(self, model: Any, wanted: bool = True) -> None:
        """Find them; nothing is compiled before it is first used.

        Args:
            model: a causal language model of transformers, with or without an adapter; what it lacks stays as it is.
            wanted: False finds none.
        """
        layers: list[nn.Module] = list(getattr(model.get_decoder(), "layers", [])) if wanted else []
        inside = [part for layer in layers for part in layer.modules()]
        homes = {type(part).__module__: vars(sys.modules[type(part).__module__]) for part in inside}
        self.works = wanted
        """False as well once compiling has failed."""
        self._homes = {home: names for home, names in homes.items() if ROTARY in names}
        self._rotary = {home: torch.compile(names[ROTARY], **COMPILING) for home, names in self._homes.items()}
        self._calls: dict[nn.Module, Any] = {}
        for part in filter(_is_small, inside):
            part.compile(**COMPILING)
            self._calls[part], part._compiled_call_impl = part._compiled_call_impl, None

    def serve(self, rows: int) -> bool:
        """Tell whether passes over so many rows use them."""
        return self.works and rows > FEW

    @contextmanager
    def compiled(self, rows: int) -> Iterator[None]:
        """Use them while the body runs, if there are many rows and compiling works."""
        if not self.serve(rows):
            yield
            return
        before: dict[str, Callable[..., Any]] = {home: names[ROTARY] for home, names in self._homes.items()}
        try:
            for part, call in self._calls.items():
                part._compiled_call_impl = call
            for home, rotary in self._rotary.items():
                self._homes[home][ROTARY] = rotary
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32")  # an adapter's products are to be float32
                yield
        finally:
            for part in self._calls:
                part._compiled_call_impl = None
            for home, rotary in before.items():
                self._homes[home][ROTARY] = rotary


def _is_small(part: nn.Module) -> bool:
    """Tell whether a part of a layer is one to compile: by the names of transformers' classes, or a LoRA layer."""
    return type(part).__name__.endswith(("Norm", "MLP")) or isinstance(part, RoundedOnce)
