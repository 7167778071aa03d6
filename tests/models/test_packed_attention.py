"""Which attention trains packs, by what the machine has."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tometune.models import packed_attention
from tometune.models.packed_attention import (
    PER_CONVERSATION,
    VARLEN,
    Packed,
    PackMask,
    flex_forward,
    forward_per_conversation,
    kernel,
    packed_by,
    training_attention,
    varlen_forward,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype", "flash", "varlen", "picked", "why"),
    [
        ((9, 0), BF16, False, True, VARLEN, "PyTorch's own FlashAttention"),
        ((9, 0), BF16, True, True, "flash_attention_2", "flash-attn is installed"),
        ((8, 0), FP16, False, True, VARLEN, "PyTorch's own FlashAttention"),
        ((7, 5), FP16, True, True, "sdpa", "compute capability 8.0, here 7.5"),
        ((9, 0), FP32, True, True, "sdpa", "needs 16 bits"),
        ((9, 0), BF16, False, False, "sdpa", "has no varlen_attn"),
    ],
)
def test_the_best_that_is_there_is_picked_and_said(monkeypatch, capability, dtype, flash, varlen, picked, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(packed_attention.util, "find_spec", lambda _: object() if flash else None)
    monkeypatch.setattr(packed_attention, "_varlen", lambda: object() if varlen else None)
    found, reason = kernel(dtype, "sdpa")
    assert found == picked
    assert why in reason
    assert kernel(dtype, "eager")[0] == "eager", "what is set is taken"


def test_without_a_gpu_each_conversation_attends_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel(BF16, "sdpa")[0] == PER_CONVERSATION
    assert {packed_by(name) for name in ("sdpa", "eager")} == {Packed.positions}
    assert {packed_by(name) for name in (VARLEN, PER_CONVERSATION, "flash_attention_2")} == {Packed.lengths}


def test_one_conversation_at_a_time_gives_what_a_mask_gives():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=64, **sizes))
    ids, lengths = torch.randint(64, (1, 12)), torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    given = {"input_ids": ids, "position_ids": torch.tensor([[*range(5), 0, *range(6)]]), "use_cache": False}
    with training_attention(model, "eager"):
        expected = model(**given).logits
    with training_attention(model, PER_CONVERSATION):
        found = model(**given, cu_seq_lens_q=lengths).logits
        together = model(**given, cu_seq_lens_q=lengths[[0, 3]]).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(together, expected, atol=1e-3), "the lengths decide"


@pytest.mark.parametrize("ends", [[0, 5, 6, 300, 384], [0, 384], [0, 128, 256, 384, 384, 384], [0, 127, 383, 384]])
def test_blocks_hold_all_that_a_conversation_may_see_and_the_mask_is_changed_in_place(ends):
    torch.manual_seed(0)
    mask = PackMask(384, torch.device("cpu"))
    kept = mask.blocks
    mask.set(torch.tensor(ends, dtype=torch.int32))
    assert mask.blocks is kept
    query, key, value = (torch.randn(1, heads, 384, 16) for heads in (4, 2, 2))
    lengths = torch.tensor(list(dict.fromkeys(ends)), dtype=torch.int32)
    alone = (query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), None, lengths)
    expected, _ = forward_per_conversation(torch.nn.Identity(), *alone)
    found, _ = flex_forward(torch.nn.Identity(), query, key, value, mask.blocks)
    torch.testing.assert_close(found, expected)
    read = mask.blocks.to_dense()[0, 0]
    document = torch.bucketize(torch.arange(384), lengths, right=True)
    visible = (document[:, None] == document) & (torch.arange(384)[:, None] >= torch.arange(384))
    needed = visible.view(3, 128, 3, 128).any(3).any(1)
    assert torch.equal(read.bool(), needed), "a block that nobody sees costs time"


def test_float32_weights_under_autocast_reach_the_kernel_in_16_bits(monkeypatch):
    """Rotary embeddings make float32 of queries and keys, and autocast does not know the kernel."""
    seen: list[torch.dtype] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.extend(part.dtype for part in (query, key, value))
        return query

    monkeypatch.setattr(packed_attention, "_varlen", lambda: kernel)
    parts = (torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4, dtype=torch.bfloat16))
    ends = torch.tensor([0, 3], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = varlen_forward(torch.nn.Identity(), *parts, None, cu_seq_lens_q=ends, max_length_q=3)
    assert seen == [torch.bfloat16] * 3
    assert found.shape == (1, 3, 2, 4)
    with pytest.raises(ValueError, match="lengths"):
        varlen_forward(torch.nn.Identity(), *parts, None)
