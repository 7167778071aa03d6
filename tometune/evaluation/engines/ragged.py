"""Attention and cache without padding: the tokens of all rows in one sequence, each row with slots of its own.

A forward pass is given N tokens of several rows as one sequence [1, N]. Linear layers do not care which row a token is
of; the two places that do are here. The cache keeps a slot a token, the slots of a row side by side; attention runs
FlashAttention-2's kernel for sequences of varying length (Dao 2023, arXiv:2307.08691), which torch brings along, from
each row's tokens to that row's slots. It takes grouped heads as they are and reads no slot that is not in use, where
transformers' sdpa copies every key and value once a query head, padding included.

Where positions lie is in tensors and not in Python numbers, so that a captured CUDA graph can go on by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from tometune.evaluation.engines.base import UnsupportedError

NAME = "tometune_ragged"
"""Under which transformers knows the attention function. No mask function goes with it: none is needed."""


@dataclass
class Layout:
    """Where the N tokens of one forward pass belong, of R rows."""

    slots: Tensor
    """[N] int64: the slot of each token in the cache."""

    first: Tensor
    """[R + 1] int32: each row's first token in this pass, and N."""

    start: Tensor
    """[R + 1] int32: each row's first slot; the last entry is not read."""

    used: Tensor
    """[R] int32: slots of each row that are in use, those of this pass included."""

    longest_query: int
    """Largest number of tokens of a row in this pass."""

    longest_row: int
    """No row uses more slots than this."""

    calls: int = 0
    """How often attention ran: once a layer, unless the model goes its own way."""


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, head_dim], allocated with the first ones."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.layout: Layout | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate; zeros, since what is never written must not be a NaN."""
        _, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(self.slots, heads, size)
        self.values = value_states.new_zeros(self.slots, heads, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, N, head_dim] to the layout's slots; returns all slots, [1, heads, slots, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.layout is not None
        self.keys.index_copy_(0, self.layout.slots, key_states[0].transpose(0, 1))
        self.values.index_copy_(0, self.layout.slots, value_states[0].transpose(0, 1))
        return self.keys.transpose(0, 1)[None], self.values.transpose(0, 1)[None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 -- transformers' signature
        """Return the length and offset that a mask would have."""
        return self.slots, 0

    def get_seq_length(self) -> int:
        """Return 0: rows differ, and positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.slots


class RaggedCache(Cache):
    """The layers of a model, all of which follow the same layout."""

    def __init__(self, layers: int, slots: int) -> None:
        """Make room for `slots` tokens, of all rows together, in each of the layers."""
        super().__init__(layers=[RaggedLayer(slots) for _ in range(layers)])
        self.slots = slots

    def follow(self, layout: Layout) -> None:
        """Set where the next tokens go."""
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

    Args:
        module: the attention layer.
        query: [1, heads, N, head_dim].
        key: [1, key heads, slots, head_dim], as `RaggedLayer.update` returns it.
        value: likewise.
        attention_mask: must be None.
        scaling: of the scores; None is 1 / sqrt(head_dim).
        layout: what the model was called with.
        other: of these only what stands for plain attention is accepted.

    Returns:
        [1, N, heads, head_dim], and None for the weights.

    Raises:
        UnsupportedError: the model wants attention of another kind, or the device has no kernel for it.
    """
    if layout is None or attention_mask is not None:
        raise UnsupportedError("its layers do not hand on what attention is called with")
    odd = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if other.get(name) is not None]
    if odd:
        raise UnsupportedError(f"its attention has {', '.join(odd)}")
    layout.calls += 1
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    out = (_flash if query.is_cuda else _reference)(q, k, v, layout, scaling)
    return out[None], None


def _flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """Attend by torch's own kernel: [N, heads, size] over [slots, key heads, size]; `seqused_k` ends each row."""
    if query.dtype not in (torch.bfloat16, torch.float16) or query.dtype != key.dtype:
        raise UnsupportedError(
            f"its attention runs in {query.dtype}, and the kernel takes 16 bits".replace("torch.", "")
        )
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise UnsupportedError(
            f"its heads have {query.shape[-1]} numbers, and the kernel takes multiples of 8 up to 256"
        )
    found = torch.ops.aten._flash_attention_forward(
        *(query, key, value, layout.first, layout.start, layout.longest_query, layout.longest_row),
        *(0.0, layout.longest_query > 1, False),  # dropout, causal, debug mask
        scale=scaling,
        seqused_k=layout.used,
    )
    attended: Tensor = found[0]
    return attended


def _reference(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """Attend row by row, the same in plain torch; for devices without the kernel."""
    first, start, used = layout.first.tolist(), layout.start.tolist(), layout.used.tolist()
    rows = []
    for row, length in enumerate(used):
        q = query[first[row] : first[row + 1]].transpose(0, 1)[None]
        k, v = (states[start[row] : start[row] + length].transpose(0, 1)[None] for states in (key, value))
        causal = q.shape[2] > 1  # then these are all of the row's tokens
        out = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True)
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


@contextmanager
def ragged_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by `attend` for a while."""
    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
