"""Attention over packs: the kernel of this machine that isolates conversations, without a dense mask if possible.

PyTorch's `varlen_attn` (2.11 and later, https://docs.pytorch.org/docs/stable/nn.attention.varlen.html) runs
FlashAttention-2 over concatenated rows; it is registered with transformers under the name `varlen`. On a CPU,
`per_conversation` calls transformers' `sdpa` for each conversation: the kernel there computes what a mask hides, too.
Compiled layers use FlexAttention (https://pytorch.org/blog/flexattention/), which skips blocks of 128 × 128 tokens
between conversations, where `varlen_attn` starts as many blocks for each conversation as the longest one has.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import util
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

VARLEN, PER_CONVERSATION, FLEX = "varlen", "per_conversation", "flex"

BLOCK = 128  # tokens per side of the blocks that FlexAttention skips or computes


class Packed(StrEnum):
    """How the attention knows where conversations begin in a pack."""

    positions = "positions"  # position ids that restart, from which transformers makes a mask, tokens × tokens
    lengths = "lengths"  # cumulative lengths, for kernels that work on one conversation at a time
    unsloth = "unsloth"  # lengths, under the name that Unsloth's models use


def kernel(dtype: torch.dtype, wanted: str) -> tuple[str, str]:
    """Return the attention of transformers that trains packs in this dtype on this machine, and the reason.

    `wanted` is `model.attn_implementation`; anything but `sdpa` is used unchanged.
    """
    if wanted != "sdpa":
        return wanted, "set by model.attn_implementation"
    if not torch.cuda.is_available():
        return PER_CONVERSATION, "no GPU"
    major, minor = torch.cuda.get_device_capability()
    if dtype not in (torch.bfloat16, torch.float16) or major < 8:
        return "sdpa", f"FlashAttention needs 16 bits and compute capability 8.0, here {major}.{minor}; with a mask"
    if util.find_spec("flash_attn") is not None:
        return "flash_attention_2", "flash-attn is installed"
    if _varlen() is not None:
        return VARLEN, "PyTorch's own FlashAttention over lengths"
    return "sdpa", f"PyTorch {torch.__version__} has no varlen_attn, and flash-attn is not installed; with a mask"


def packed_by(implementation: str) -> Packed:
    """Return how an attention of transformers separates conversations."""
    by_lengths = implementation.startswith(("flash", VARLEN, PER_CONVERSATION)) or implementation == FLEX
    return Packed.lengths if by_lengths else Packed.positions


@contextmanager
def training_attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Switch the model's attention while the body runs; None changes nothing."""
    if implementation is None:
        yield
        return
    forwards = {VARLEN: varlen_forward, PER_CONVERSATION: forward_per_conversation, FLEX: flex_forward}
    for name, forward in forwards.items():
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, lambda *_, **__: None)  # lengths replace the mask
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _varlen() -> Any:
    """Return PyTorch's attention over lengths, if this version has it with a window, which makes it causal."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def varlen_forward(
    module: nn.Module,  # noqa: ARG001 -- transformers' form
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each conversation of one row. Returns [1, tokens, heads, head_dim], and no weights.

    Queries, keys and values are [1, heads, tokens, head_dim], each key serves a group of query heads; `cu_seq_lens_q`
    are cumulative lengths, [conversations + 1], int32, and `max_length_q` is the length of the longest conversation.

    Raises:
        ValueError: the lengths are missing, or there is dropout.
    """
    if cu_seq_lens_q is None or max_length_q is None or dropout:
        raise ValueError("the attention varlen needs the lengths of a pack's conversations, and has no dropout")
    if query.dtype is torch.float32:  # of float32 weights under autocast, which does not know this kernel
        query, key, value = (part.to(torch.get_autocast_dtype(part.device.type)) for part in (query, key, value))
    rows = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    attend = _varlen()
    # Before PyTorch 2.12 the kernel detects by itself that heads share keys.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attend).parameters else {}
    found = attend(
        *rows, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0), **grouped
    )
    return found.unsqueeze(0), None


class PackMask:
    """FlexAttention's causal mask within the conversations of one row; changed in place, as a CUDA graph needs it."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        """Make the mask of a row that is one conversation; `tokens` is a multiple of BLOCK."""
        conversation = torch.zeros(tokens, dtype=torch.int32, device=device)  # number of each token's conversation

        def visible(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
            return (conversation[query] == conversation[key]) & (query >= key)

        self._conversation, self._visible = conversation, visible
        self.blocks = self._blocks(torch.tensor([0, tokens], dtype=torch.int32, device=device))

    def set(self, ends: torch.Tensor) -> None:
        """Set the conversations' cumulative lengths, [conversations + 1] int32; nothing waits for the GPU."""
        new = self._blocks(ends)
        for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
            getattr(self.blocks, name).copy_(getattr(new, name))

    def _blocks(self, ends: torch.Tensor) -> BlockMask:
        """Return the blocks of keys that each block of queries reads: from its first token's conversation on."""
        tokens, device = len(self._conversation), ends.device
        numbers = torch.arange(tokens, dtype=ends.dtype, device=device)
        self._conversation.copy_(torch.searchsorted(ends, numbers, right=True))
        last = torch.arange(tokens // BLOCK, device=device)
        first = ends[self._conversation[::BLOCK] - 1] // BLOCK
        indices = (first[:, None] + last).clamp(max=len(last) - 1)
        return BlockMask.from_kv_blocks(
            (last - first + 1).to(torch.int32)[None, None],
            indices.to(torch.int32)[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=self._visible,
            seq_lengths=(tokens, tokens),
        )


@functools.lru_cache(maxsize=1)
def pack_mask(tokens: int, device: torch.device) -> PackMask:
    """Return the mask of rows of this size; layers are compiled for one mask, so it is made once."""
    return PackMask(tokens, device)


def flex_forward(
    module: nn.Module,  # noqa: ARG001 -- transformers' form
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each conversation of one row, by the blocks of a `PackMask`; the shapes are `varlen_forward`'s."""
    found = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return found.transpose(1, 2), None


def forward_per_conversation(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 -- transformers' form
    cu_seq_lens_q: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each conversation of one row, with a call of transformers' `sdpa` for each.

    The shapes are those of `varlen_forward`; `options` go to `sdpa`.
    """
    options |= {"is_causal": True, "position_ids": None}
    found = [
        sdpa_attention_forward(module, *(part[:, :, start:end] for part in (query, key, value)), None, **options)[0]
        for start, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(found, 1), None
