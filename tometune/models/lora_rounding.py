"""LoRA layers in 16 bits, or trained over 4 bits, that round once: base and adapter are added before rounding.

PEFT adds the adapter's output afterwards, to a number of 8 significant bits (bfloat16). Changes below half of the last
bit are lost then, always in the same direction: of changes of a thousandth, as at the beginning of a training, nearly
half (docs/footguns.md). On a CPU `torch.addmm` adds before rounding; on a GPU it rounds twice as well. There training
joins the columns of adapter and base, and one product adds over all of them in float32. Layers that read the same input
(query, key and value; gate and up) share that product. A bias is added after that. DoRA, several adapters at once and
float32 are left to PEFT.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional

ALIGNED = 8  # columns in 16 bits that fill 16 bytes, to which fast kernels on a GPU need rows to be aligned

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same input, in the order in which transformers' models call them."""


class Joined(torch.autograd.Function):
    """`x @ weight.T + low @ b.T` as one product. The weight is frozen; `expand(*stored)` makes it in each pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        low: torch.Tensor,
        b: torch.Tensor,
        expand: Callable[..., torch.Tensor],
        *stored: torch.Tensor,
    ) -> torch.Tensor:
        """Return [rows, out] of x [rows, in], low [rows, r], b [out, r] and the weight [out, in], all of one dtype."""
        ctx.expand, ctx.stored = expand, stored
        ctx.save_for_backward(low, b)
        return one_product(x, low, expand(*stored), b)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, low and b."""
        (gradient,), (low, b) = gradients, ctx.saved_tensors
        before = gradient @ ctx.expand(*ctx.stored) if ctx.needs_input_grad[0] else None
        return before, gradient @ b, gradient.t() @ low, None, *(None for _ in ctx.stored)


def one_product(x: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `x @ weight.T + low @ b.T` [rows, out] from one product over the columns of both."""
    filled = (0, -low.shape[1] % ALIGNED)
    low, b = functional.pad(low, filled), functional.pad(b, filled)
    return torch.cat((x, low), 1) @ torch.cat((weight, b), 1).t()


def added(x: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return `x @ weight.T + change` [rows, out], added before rounding; on a GPU without gradients.

    Unlike `Joined` it copies no weight, which would not pay off for the few rows of generation.
    """
    if x.device.type == "cpu":
        return torch.addmm(change.to(x.dtype), x, weight.t())
    return torch.mm(x, weight.t(), out_dtype=torch.float32).add_(change).to(x.dtype)


def joined_outputs(layers: Sequence[Any], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs [..., out] of LoRA layers with the same input x [..., in], from one product."""
    base, (name,) = [layer.base_layer for layer in layers], layers[0].active
    dtype, siblings = layers[0].product_dtype, layers[0].siblings
    b = [layer.lora_B[name].weight.to(dtype) for layer in layers]
    dropouts = [layer.lora_dropout[name] for layer in layers]
    given = layers[0]._cast_input_dtype(x, layers[0].lora_A[name].weight.dtype)
    if all(isinstance(dropout, nn.Identity) for dropout in dropouts):
        narrow = functional.linear(given, torch.cat([layer.lora_A[name].weight for layer in layers]))
    else:
        narrow = torch.cat([layer.lora_A[name](drop(given)) for layer, drop in zip(layers, dropouts, strict=True)], -1)
    rows = x.to(dtype).reshape(-1, x.shape[-1])
    low = (narrow * layers[0].scaling[name]).to(dtype).reshape(len(rows), -1)
    if siblings.fp8 is None:
        found = Joined.apply(rows, low, block_diagonal(b), _expander(layers), *_stored(layers))
        found = found.split([layer.out_features for layer in base], 1)
    else:
        whole = len(layers) == len(siblings.layers)
        weight = siblings.fp8 if whole else siblings.fp8.for_part(frozen_weight(layers))
        found = weight.outputs(rows, low, b, _expander(layers), *_stored(layers))
    outputs = [out.view(*x.shape[:-1], -1) for out in found]
    return [out if layer.bias is None else out + layer.bias for out, layer in zip(outputs, base, strict=True)]


def block_diagonal(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the matrices along the diagonal of one; a single one is not copied."""
    return matrices[0] if len(matrices) == 1 else torch.block_diag(*matrices)


def frozen_weight(layers: Sequence[Any]) -> torch.Tensor:
    """Return the base weights of LoRA layers with the same input, below each other: [sum of out, in] in 16 bits."""
    return _expander(layers)(*_stored(layers))


def _stored(layers: Sequence[Any]) -> list[torch.Tensor]:
    return [layer.base_layer.weight.data for layer in layers]


def _expander(layers: Sequence[Any]) -> Callable[..., torch.Tensor]:
    """Return the function that makes the `frozen_weight` from the stored weights."""
    dtype = layers[0].product_dtype
    states = [getattr(layer.base_layer.weight, "quant_state", None) for layer in layers]  # of bitsandbytes' 4 bits

    def expand(*stored: torch.Tensor) -> torch.Tensor:
        weights = list(stored)
        for place, state in enumerate(states):
            if state is not None:
                from bitsandbytes.functional import dequantize_4bit

                weights[place] = dequantize_4bit(weights[place], state).to(dtype)
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    return expand


def joins(x: torch.Tensor) -> bool:
    """Tell whether columns are joined: in training on a GPU."""
    return bool(x.is_cuda and torch.is_grad_enabled())


class Siblings:
    """Layers that are called one after the other with the same input. The first call computes all outputs."""

    def __init__(self, layers: "Sequence[JoinedLora]") -> None:
        self.layers = layers
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []
        self.fp8: Any = None
        """Their frozen weights in FP8 (`tometune.models.fp8`), if products use them."""

    def output(self, layer: "JoinedLora", x: torch.Tensor) -> torch.Tensor:
        place = next(index for index, each in enumerate(self.layers) if each is layer)
        if place == 0:
            self._input, self._outputs = x, joined_outputs(self.layers, x)
        elif self._input is not x:  # a model that calls them in another way
            return joined_outputs([layer], x)[0]
        found = self._outputs[place]
        if place == len(self.layers) - 1:
            self.forget()
        return found

    def forget(self) -> None:
        """Forget input and outputs, which would stay in memory."""
        self._input, self._outputs = None, []


class JoinedLora:
    """What PEFT's LoRA layers need for one product of base and adapter."""

    siblings: Siblings

    def joined(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the output for `x` [..., in features] from one product."""
        together = all(layer.is_plain for layer in self.siblings.layers)
        return self.siblings.output(self, x) if together else joined_outputs([self], x)[0]

    @property
    def active(self: Any) -> list[str]:
        """The names of the active adapters that this layer has."""
        return [name for name in self.active_adapters if name in self.lora_A]

    @property
    def product_dtype(self: Any) -> torch.dtype:
        """The dtype of the product: that of the base's weights, or the one in which 4 bits are expanded."""
        weight = self.base_layer.weight
        return getattr(weight, "quant_state", weight).dtype  # type: ignore[no-any-return]

    @property
    def is_plain(self: Any) -> bool:
        """Whether this is one plain adapter, without bias or hooks, over a frozen base layer in 16 bits or less."""
        if len(self.active) != 1 or self.active[0] in self.lora_variant or self.disable_adapters or self.merged:
            return False
        base, lora_b = self.base_layer, self.lora_B[self.active[0]]
        hooked = any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in layer.__dict__
            for layer in (base, lora_b)
        )
        frozen = self.product_dtype.itemsize == 2 and not base.weight.requires_grad
        return frozen and not hooked and lora_b.bias is None


class RoundedOnce(JoinedLora, Linear):  # type: ignore[misc]
    """PEFT's LoRA layer, which rounds once if there is one plain adapter over 16 bits."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output of base and adapter for `x` [..., in features], in the base's dtype."""
        if args or kwargs or not self.is_plain:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        if joins(x):
            return self.joined(x)
        base, (name,) = self.base_layer, self.active
        # Under autocast the product is in 16 bits whatever the input is; dropout, however, is computed in float32.
        same = torch.is_autocast_enabled(x.device.type) and isinstance(self.lora_dropout[name], nn.Identity)
        given = x if same else self.lora_dropout[name](self._cast_input_dtype(x, self.lora_A[name].weight.dtype))
        change = self.lora_B[name](self.lora_A[name](given) * self.scaling[name])
        rows = x.to(base.weight.dtype).reshape(-1, base.in_features)
        found = added(rows, base.weight, change.reshape(-1, base.out_features))
        found = found if base.bias is None else found + base.bias
        return found.view(*x.shape[:-1], base.out_features)


@functools.cache
def _four_bits() -> list[tuple[type, type]]:
    """Return PEFT's LoRA layer over 4 bits and the same, which rounds once in training; none without bitsandbytes."""
    if not is_bnb_4bit_available():
        return []
    from peft.tuners.lora.bnb import Linear4bit

    class RoundedOnce4bit(JoinedLora, Linear4bit):  # type: ignore[misc]
        """Without gradients the 4 bits are multiplied directly, which gives a rounded product."""

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            # Files of 4 bits may name another type than that in which this GPU computes.
            computes = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
            if args or kwargs or not joins(x) or not self.is_plain or computes is not self.product_dtype:
                return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            return self.joined(x)

    return [(Linear4bit, RoundedOnce4bit)]


def forget_inputs(model: nn.Module) -> None:
    """Forget what the layers of a model hold of an interrupted pass."""
    for module in model.modules():
        if isinstance(module, JoinedLora):
            module.siblings.forget()


def round_once(model: nn.Module) -> None:
    """Make the LoRA layers of a model round once, if their base is a plain linear layer or one in 4 bits."""
    for module in model.modules():
        for theirs, ours in [(Linear, RoundedOnce), *_four_bits()]:
            if type(module) is theirs and (theirs is not Linear or type(module.base_layer) is nn.Linear):
                module.__class__ = ours
                module.siblings = Siblings([module])
    for parent in model.modules():
        for names in SIBLINGS:
            layers: list[Any] = [getattr(parent, name, None) for name in names]
            if isinstance(layers[0], JoinedLora) and {type(layers[0])} == {type(layer) for layer in layers}:
                shared = Siblings(layers)
                for layer in layers:
                    layer.siblings = shared
