"""Products with frozen weights in FP8, for LoRA layers in training: all of them, or those of the backward pass.

Inputs, weights and gradients become e4m3, with one scale for each row of a product, so that a large value costs only
its own row precision. The adapter, norms, attention and loss stay in 16 bits. A weight is rounded once for the forward
pass and once, transposed, for the backward pass, which together take as much memory as in 16 bits.

`model.compute=fp8_backward` leaves the forward pass in 16 bits, because FP8 costs little in the backward pass
(docs/footguns.md).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from tometune.common.errors import UserError
from tometune.config.model import Compute
from tometune.models.lora_rounding import JoinedLora, block_diagonal, frozen_weight, one_product

E4M3 = torch.float8_e4m3fn
MOST = torch.finfo(E4M3).max
TINY = 1e-12  # smallest scale, for rows of zeros
ALIGNED = 16  # the GPU's FP8 product needs multiples of this many inputs and outputs


class Fp8Weight(NamedTuple):
    """A frozen weight [out, in] in FP8, by its inputs and, unless the forward pass stays in 16 bits, by its outputs."""

    by_input: torch.Tensor  # [in, out]
    input_scales: torch.Tensor  # [in, 1], float32
    by_output: torch.Tensor | None = None  # [out, in]
    output_scales: torch.Tensor | None = None  # [out, 1], float32

    @classmethod
    def of(cls, weight: torch.Tensor, forward: bool) -> "Fp8Weight":
        return cls(*to_fp8(weight.t().contiguous()), *(to_fp8(weight) if forward else ()))

    def for_part(self, weight: torch.Tensor) -> "Fp8Weight":
        """Return the weight of some of its layers, in FP8 by the same sides."""
        return self.of(weight, self.by_output is not None)

    def outputs(
        self,
        x: torch.Tensor,
        low: torch.Tensor,
        bs: Sequence[torch.Tensor],
        expand: Callable[..., torch.Tensor],
        *stored: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the outputs [rows, out of one layer] of LoRA layers that share x [rows, in], from one product.

        Each is a layer's part of `x @ weight.T` plus `low_i @ b_i.T`, where b_i is [out of the layer, r] and low_i are
        its columns of low [rows, sum of r]. All are bfloat16. `expand(*stored)` makes the weight in 16 bits.
        """
        sizes = [len(b) for b in bs]

        def forward(x: torch.Tensor, low: torch.Tensor, *bs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if self.by_output is None:
                return tuple(one_product(x, low, expand(*stored), block_diagonal(bs)).split(sizes, 1))
            product = _product(x, self.by_output, self.output_scales)
            if len(bs) == 1 and torch.compiler.is_compiling():  # the compiler adds it to the residual, all in float32
                return (product + low @ bs[0].t(),)
            add_product(product, low, block_diagonal(bs).t())
            return tuple(product.split(sizes, 1))

        return Fp8LoraProduct.apply(x, low, forward, self.by_input, self.input_scales, *bs)  # type: ignore[no-any-return]


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [rows, columns] in FP8 and their scales [rows, 1]; their product is about the rows again."""
    scales = rows.abs().amax(1, keepdim=True).float().clamp(min=TINY) / MOST
    return (rows / scales).to(E4M3), scales


class Fp8LoraProduct(torch.autograd.Function):
    """The product of LoRA layers that share an input, plus the products of their adapters; FP8 in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        low: torch.Tensor,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        by_input: torch.Tensor,
        input_scales: torch.Tensor,
        *bs: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the output [rows, out] of each layer: `forward(x, low, *bs)`."""
        ctx.save_for_backward(low, by_input, input_scales, *bs)
        return forward(x, low, *bs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, low and each b.

        The adapters' gradients are computed layer by layer first. This makes Inductor write each output's gradient once
        before it joins them; otherwise one kernel computes the gradients of all layers for each column and masks them
        (0.9 instead of 0.6 ms for gate and up of the 3B).
        """
        low, by_input, input_scales, *bs = ctx.saved_tensors
        lows = low.split([b.shape[1] for b in bs], 1)
        of_low = side_by_side([gradient @ b for gradient, b in zip(gradients, bs, strict=True)])
        of_bs = [gradient.t() @ part for gradient, part in zip(gradients, lows, strict=True)]
        of_x = _product(side_by_side(gradients), by_input, input_scales) if ctx.needs_input_grad[0] else None
        return of_x, of_low, None, None, None, *of_bs


def side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return parts [rows, columns] next to each other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


@torch.library.custom_op("tometune::add_product", mutates_args=["total"])  # type: ignore[untyped-decorator]
def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `total`. Inductor would turn the sum into `addmm`, which first copies `total`."""
    total.addmm_(left, right)


def _product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows, row_scales = to_fp8(x)
    return torch._scaled_mm(
        rows, weight.t(), scale_a=row_scales, scale_b=scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


@contextmanager
def fp8_products(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Use FP8 products in the LoRA layers of a model while the body runs; layers that share an input share one.

    With `default` nothing changes.

    Raises:
        UserError: a layer's size does not suit the GPU's product.
    """
    if compute is Compute.default:
        yield
        return
    shared = {id(module.siblings): module.siblings for module in model.modules() if isinstance(module, JoinedLora)}
    try:
        for siblings in shared.values():
            weight = frozen_weight(siblings.layers)
            if any(size % ALIGNED for size in weight.shape):
                size = f"{weight.shape[1]} inputs and {weight.shape[0]} outputs"
                raise UserError(
                    f"model.compute={compute}: a layer has {size}, which are no multiples of {ALIGNED}; set "
                    "model.compute=default"
                )
            siblings.fp8 = Fp8Weight.of(weight, forward=compute is Compute.fp8)
        yield
    finally:
        for siblings in shared.values():
            siblings.fp8 = None
