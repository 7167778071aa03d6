"""Attention and cache without padding: the tokens of all rows form one sequence, and each row has its own slots.

A forward pass receives N tokens of several rows as one sequence [1, N]. Linear layers treat each token separately; only
the cache and attention must know the rows. The cache has one slot per token, and the slots of a row are contiguous.
Attention runs FlashAttention-2's kernel for sequences of varying length (Dao 2023, arXiv:2307.08691), which is part of
torch, from each row's tokens to that row's slots. It needs no copies for grouped heads and reads no unused slot, while
transformers' sdpa copies every key and value once per query head, padding included.

Positions are in tensors and not in Python numbers, so that a captured CUDA graph can advance them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from tometune.evaluation.engines import UnsupportedError

NAME = "tometune_ragged"  # of the attention function in transformers; it needs no mask and has no mask function
KERNEL = "_flash_attention_forward"  # private torch operator for the attention; another version may not have it


@dataclass
class Layout:
    """Slots of the N tokens of one forward pass over R rows."""

    slots: Tensor  # [N] int64: slot of each token in the cache
    first: Tensor  # [R + 1] int32: each row's first token in this pass, and N
    start: Tensor  # [R + 1] int32: each row's first slot; the last entry is not read
    used: Tensor  # [R] int32: number of used slots of each row, including this pass
    longest_query: int  # largest number of tokens of a row in this pass
    longest_row: int  # upper bound of the slots used by a row
    calls: int = 0  # of `attend`: one per layer, unless the model uses other attention
    grouped: dict[int, Tensor] = field(default_factory=dict)  # `first` by query heads per key head, see `attend`


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, head_dim], allocated on first use."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.layout: Layout | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros, because slots that are never written must not be NaN."""
        _, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(self.slots, heads, size)
        self.values = value_states.new_zeros(self.slots, heads, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, N, head_dim] to the layout's slots and return all slots, [1, heads, slots, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.layout is not None
        self.keys.index_copy_(0, self.layout.slots, key_states[0].transpose(0, 1))
        self.values.index_copy_(0, self.layout.slots, value_states[0].transpose(0, 1))
        return self.keys.transpose(0, 1)[None], self.values.transpose(0, 1)[None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 -- transformers' signature
        return self.slots, 0

    def get_seq_length(self) -> int:
        return 0  # lengths differ by row, and positions are always given

    def get_max_length(self) -> int:
        return self.slots


class RaggedCache(Cache):
    """The layers of a model, which share one layout; each has `slots` slots for the tokens of all rows."""

    def __init__(self, layers: int, slots: int) -> None:
        super().__init__(layers=[RaggedLayer(slots) for _ in range(layers)])
        self.slots = slots

    def follow(self, layout: Layout) -> None:
        """Set the layout of the next forward pass."""
        for layer in self.layers:
            layer.layout = layout


def attend(
    module: torch.nn.Module,  # noqa: ARG001 -- transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attend from each row's tokens to that row's slots, causally.

    The arguments are those of transformers: query is [1, heads, N, head_dim], key and value are [1, key heads, slots,
    head_dim], as `RaggedLayer.update` returns them, and `layout` comes from the model's call.

    Returns:
        [1, N, heads, head_dim], and None for the weights.

    Raises:
        UnsupportedError: the model needs another kind of attention, or the kernel does not support its shapes.
    """
    if layout is None or attention_mask is not None:
        raise UnsupportedError("its layers do not pass on keyword arguments to attention")
    odd = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if other.get(name) is not None]
    if odd:
        raise UnsupportedError(f"its attention has {', '.join(odd)}")
    layout.calls += 1
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    kernel = _flash if query.is_cuda else _reference
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    if layout.longest_query > 1 or group == 1:
        return kernel(q, k, v, layout.first, layout, scaling)[None], None
    # A step has one token per row, so the query heads that share a key head can be the queries of a row: the kernel
    # then reads keys and values once instead of once per query head (three times for Llama-3.2-3B).
    if group not in layout.grouped:
        layout.grouped[group] = group * layout.first
    q = q.unflatten(1, (heads, group)).transpose(1, 2).flatten(0, 1)
    out = kernel(q, k, v, layout.grouped[group], replace(layout, longest_query=group), scaling, causal=False)
    return out.unflatten(0, (-1, group)).transpose(1, 2).flatten(1, 2)[None], None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, layout: Layout, scaling: float | None, causal: bool = True
) -> Tensor:
    """Attend with torch's kernel: [N, heads, size] over [slots, key heads, size]; `seqused_k` limits each row.

    `first` is each row's first query, and N.
    """
    if query.dtype not in (torch.bfloat16, torch.float16) or query.dtype != key.dtype:
        dtype = str(query.dtype).removeprefix("torch.")
        raise UnsupportedError(f"its attention runs in {dtype}, and the kernel needs 16 bits")
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise UnsupportedError(f"its head size is {query.shape[-1]}, and the kernel needs a multiple of 8 up to 256")
    found = getattr(torch.ops.aten, KERNEL)(
        *(query, key, value, first, layout.start, layout.longest_query, layout.longest_row),
        *(0.0, causal and layout.longest_query > 1, False),  # dropout, causal, debug mask
        scale=scaling,
        seqused_k=layout.used,
    )
    attended: Tensor = found[0]
    return attended


def _reference(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, layout: Layout, scaling: float | None, causal: bool = True
) -> Tensor:
    """Attend row by row in plain torch, for devices without the kernel; the arguments are those of `_flash`."""
    edges, start, used = first.tolist(), layout.start.tolist(), layout.used.tolist()
    rows = []
    for row, length in enumerate(used):
        q = query[edges[row] : edges[row + 1]].transpose(0, 1)[None]
        k, v = (states[start[row] : start[row] + length].transpose(0, 1)[None] for states in (key, value))
        prompt = causal and q.shape[2] > 1  # these are all tokens of the row
        out = scaled_dot_product_attention(q, k, v, is_causal=prompt, scale=scaling, enable_gqa=True)
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


@contextmanager
def ragged_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model use `attend` in the body."""
    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
