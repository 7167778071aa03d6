"""LoRA layers in 16 bits that round once: the adapter's output is added before the base layer's output is rounded.

PEFT adds it afterwards, to a number of 8 significant bits (bfloat16). Changes below half of the last bit are lost then,
always in the same direction: of changes of a thousandth, as at the beginning of a training, nearly half
(docs/footguns.md). On a CPU `torch.addmm` adds before rounding; on a GPU it rounds twice as well. There the columns of
adapter and base are joined, and one product adds over all of them in float32. A bias is added after that. DoRA, several
adapters at once and float32 are left to PEFT.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

ALIGNED = 8  # columns in 16 bits that fill 16 bytes, to which fast kernels on a GPU need rows to be aligned


class Joined(torch.autograd.Function):
    """`x @ weight.T + low @ b.T` as one product; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return [rows, out] of x [rows, in], weight [out, in], low [rows, r] and b [out, r], all of one type."""
        ctx.save_for_backward(weight, low, b)
        filled = (0, -low.shape[1] % ALIGNED)
        low, b = functional.pad(low, filled), functional.pad(b, filled)
        return torch.cat((x, low), 1) @ torch.cat((weight, b), 1).t()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, low and b."""
        (gradient,), (weight, low, b) = gradients, ctx.saved_tensors  # type: ignore[attr-defined]
        before = gradient @ weight if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        return before, None, gradient @ b, gradient.t() @ low


def added(x: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return `x @ weight.T + change` [rows, out], added before rounding; on a GPU without gradients.

    Unlike `Joined` it copies no weight, which would not pay off for the few rows of generation.
    """
    if x.device.type == "cpu":
        return torch.addmm(change.to(x.dtype), x, weight.t())
    return torch.mm(x, weight.t(), out_dtype=torch.float32).add_(change).to(x.dtype)


class RoundedOnce(Linear):
    """PEFT's LoRA layer, which rounds once if there is one plain adapter over 16 bits."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output of base and adapter for `x` [..., in features], in the base's dtype."""
        base, active = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and active[0] not in self.lora_variant and not (args or kwargs)
        if not plain or self.disable_adapters or self.merged or not _only_multiplies(base, self.lora_B[active[0]]):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        lora_a, lora_b = self.lora_A[active[0]], self.lora_B[active[0]]
        given = self.lora_dropout[active[0]](self._cast_input_dtype(x, lora_a.weight.dtype))
        rows, narrow = x.to(base.weight.dtype).reshape(-1, base.in_features), lora_a(given)
        if x.device.type == "cpu" or (x.device.type == "cuda" and not torch.is_grad_enabled()):
            change = lora_b(narrow) * self.scaling[active[0]]
            found = added(rows, base.weight, change.reshape(-1, base.out_features))
        else:
            low = (narrow * self.scaling[active[0]]).to(rows.dtype).reshape(len(rows), -1)
            found = Joined.apply(rows, base.weight, low, lora_b.weight.to(rows.dtype))
        found = found if base.bias is None else found + base.bias
        return found.view(*x.shape[:-1], base.out_features)


def _only_multiplies(base: nn.Linear, lora_b: nn.Linear) -> bool:
    """Tell whether a layer is in 16 bits and frozen, nothing is hooked to it, and its adapter adds no bias."""
    hooked = any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in layer.__dict__
        for layer in (base, lora_b)
    )
    return base.weight.dtype.itemsize == 2 and not base.weight.requires_grad and not hooked and lora_b.bias is None


def round_once(model: nn.Module) -> None:
    """Make the LoRA layers of a model round once, if their base is a plain linear layer.

    Layers in 4 bits are unchanged, because their kernels give a rounded product.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = RoundedOnce
