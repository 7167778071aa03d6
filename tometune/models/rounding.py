"""LoRA layers in 16 bits that round once: what was trained is added to a product before it is rounded, not after.

PEFT adds the adapter's part to the base's product when that is a number of 8 significant bits already (bfloat16).
Whatever is less than half of the last bit is lost then, always in the same direction: of changes of a thousandth, as
they are at the beginning of a training, nearly half (docs/footguns.md). `torch.addmm` takes the adapter's part along
into the matrix product, which adds in float32 and rounds at its end; on a CPU it takes no longer. A bias comes after
that, and DoRA, several adapters at once and float32 are PEFT's own.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn


class RoundedOnce(Linear):
    """PEFT's LoRA layer; with one plain adapter over 16 bits the sum is rounded once, and all else is PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return base and adapter of `x` [..., in features], in the base's type."""
        base, active = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and active[0] not in self.lora_variant and not (args or kwargs)
        if not plain or self.disable_adapters or self.merged or base.weight.dtype.itemsize != 2:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        lora_a, lora_b = self.lora_A[active[0]], self.lora_B[active[0]]
        given = self.lora_dropout[active[0]](self._cast_input_dtype(x, lora_a.weight.dtype))
        change = lora_b(lora_a(given)) * self.scaling[active[0]]
        rows = x.to(base.weight.dtype).reshape(-1, base.in_features)
        found = torch.addmm(change.to(rows.dtype).reshape(-1, base.out_features), rows, base.weight.t())
        found = found if base.bias is None else found + base.bias
        return found.view(*x.shape[:-1], base.out_features)


def round_once(model: nn.Module) -> None:
    """Make the LoRA layers of a model round once, where they stand on plain linear layers.

    Layers in 4 bits and those of other backends stay as they are: their kernels give a rounded product.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = RoundedOnce
