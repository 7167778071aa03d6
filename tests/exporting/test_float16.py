"""float16 where its range allows."""

import pytest
import torch

from tests.data.chatml import chatml_tokenizer
from tests.fixtures.llama import tiny_llama
from tometune.common.errors import UserError
from tometune.config.model import Precision
from tometune.exporting.merging import largest_activation, resolve_dtype


def test_float16_only_where_its_range_allows(caplog):
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    assert resolve_dtype(Precision.auto, weights, 1000.0) is torch.float16
    assert resolve_dtype(Precision.bf16, weights, 1000.0) is torch.bfloat16
    assert resolve_dtype(Precision.fp32, weights, 1000.0) is torch.float32
    assert resolve_dtype(Precision.auto, weights, 40_000.0) is torch.float32
    assert "a weight of 3 or an activation of 4e+04 is too near the end of float16" in caplog.text
    assert resolve_dtype(Precision.fp16, weights, 40_000.0) is torch.float16, "as asked for: it can be stored"
    weights["a"][1] = -1e5
    assert resolve_dtype(Precision.auto, weights, 1000.0) is torch.float32
    with pytest.raises(UserError, match=r"^export.dtype=fp16: a weight is 1e\+05, beyond float16 \(65504\); leave it"):
        resolve_dtype(Precision.fp16, weights, 1000.0)


def test_the_largest_activation_is_found_inside_the_model():
    model, ids = tiny_llama(chatml_tokenizer(), seed=1), torch.arange(4, 20).reshape(1, -1)
    with torch.no_grad():
        with largest_activation(model) as usual:
            logits = model(ids).logits
        assert usual[0] >= float(logits.abs().max())
        model.model.layers[0].mlp.up_proj.weight.mul_(1e6)  # what `down_proj` reads, which its own scale hides
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-6)
        with largest_activation(model) as hidden:
            torch.testing.assert_close(model(ids).logits, logits, atol=1e-3, rtol=1e-3)
    assert hidden[0] > 1000 * usual[0]
    assert not [one for one in model.modules() if one._forward_hooks]
