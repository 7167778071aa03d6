"""Products with frozen weights in FP8 (`model.compute=fp8`), for LoRA layers in training.

Inputs, weights and gradients become e4m3, with one scale for each row of a product, so that a large value costs only
its own row precision. The adapter, norms, attention and loss stay in 16 bits. A weight is rounded once for the forward
pass and once, transposed, for the backward pass, which together take as much memory as in 16 bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from tometune.common.errors import UserError
from tometune.models.lora_rounding import JoinedLora, frozen_weight

E4M3 = torch.float8_e4m3fn
MOST = torch.finfo(E4M3).max
TINY = 1e-12  # smallest scale, for rows of zeros
ALIGNED = 16  # the GPU's FP8 product needs multiples of this many inputs and outputs


class Fp8Weight(NamedTuple):
    """A frozen weight [out, in] in FP8, by its outputs and by its inputs."""

    by_output: torch.Tensor
    output_scales: torch.Tensor  # [out, 1], float32
    by_input: torch.Tensor  # [in, out]
    input_scales: torch.Tensor  # [in, 1], float32

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Fp8Weight":
        return cls(*to_fp8(weight), *to_fp8(weight.t().contiguous()))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x @ weight.T` [rows, out] of x [rows, in], in bfloat16."""
        return Fp8Product.apply(x, *self)  # type: ignore[no-any-return]


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [rows, columns] in FP8 and their scales [rows, 1]; their product is about the rows again."""
    scales = rows.abs().amax(1, keepdim=True).float().clamp(min=TINY) / MOST
    return (rows / scales).to(E4M3), scales


class Fp8Product(torch.autograd.Function):
    """The product with the tensors of an `Fp8Weight`; only x gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        by_output: torch.Tensor,
        output_scales: torch.Tensor,
        by_input: torch.Tensor,
        input_scales: torch.Tensor,
    ) -> torch.Tensor:
        """Return [rows, out] of x [rows, in]."""
        ctx.save_for_backward(by_input, input_scales)
        return _product(x, by_output, output_scales)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        return _product(gradients[0], *ctx.saved_tensors), None, None, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows, row_scales = to_fp8(x)
    return torch._scaled_mm(
        rows, weight.t(), scale_a=row_scales, scale_b=scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


@contextmanager
def fp8_products(model: nn.Module) -> Iterator[None]:
    """Use FP8 products in the LoRA layers of a model while the body runs; layers that share an input share one.

    Raises:
        UserError: a layer's size does not suit the GPU's product.
    """
    shared = {id(module.siblings): module.siblings for module in model.modules() if isinstance(module, JoinedLora)}
    try:
        for siblings in shared.values():
            weight = frozen_weight(siblings.layers)
            if any(size % ALIGNED for size in weight.shape):
                raise UserError(
                    f"model.compute=fp8: a layer has {weight.shape[1]} inputs and {weight.shape[0]} outputs, which are "
                    f"no multiples of {ALIGNED}; set model.compute=default"
                )
            siblings.fp8 = Fp8Weight.of(weight)
        yield
    finally:
        for siblings in shared.values():
            siblings.fp8 = None
