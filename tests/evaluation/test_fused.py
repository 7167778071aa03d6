"""Compiled parts round as the model does, one compilation serves all layers, and nothing of it stays."""

import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from tometune.evaluation.engines import capture
from tometune.evaluation.engines.cuda_graph import CudaGraph
from tometune.evaluation.engines.fused import ROTARY, fused
from tometune.evaluation.generation import greedy
from tometune.models.rounding import round_once

gpu_needed = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def llama(layers, hidden=64, **more):
    torch.manual_seed(0)
    heads = {"num_attention_heads": hidden // 16, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, **heads, **more
    )
    return LlamaForCausalLM(config).eval().bfloat16()


@pytest.mark.parametrize("adapted", [False, True])
def test_logits_are_the_same_bit_for_bit(adapted):
    torch._dynamo.reset()
    model, rotary = llama(3), vars(sys.modules[LlamaForCausalLM.__module__])[ROTARY]
    if adapted:
        lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora)
        round_once(model)
    ids, before = torch.randint(0, 400, (4, 7)), counters["stats"]["unique_graphs"]
    with torch.no_grad():
        expected = model(ids).logits
        with fused(model):
            found = model(ids).logits
        assert torch.equal(found, expected)
        assert counters["stats"]["unique_graphs"] - before == 3 + adapted, (
            "norm, rotary, MLP and q_proj, for all layers"
        )
        assert torch.equal(model(ids).logits, expected)
    assert vars(sys.modules[LlamaForCausalLM.__module__])[ROTARY] is rotary
    assert not any(part._compiled_call_impl for part in model.modules())


@pytest.mark.gpu
@gpu_needed
@pytest.mark.parametrize("adapted", [False, True])
def test_many_rows_answer_the_same_compiled(adapted, monkeypatch, tokenizer, caplog):
    """Of 96 answers of 24 tokens from random weights, whose ties are many, nearly all are the same."""
    model = llama(6, 512, max_position_embeddings=512).cuda()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"))
        round_once(model)
    config = greedy(model, tokenizer, 24)
    prompts = [[(7 * row + token) % 400 for token in range(5 + row)] for row in range(96)]
    answers = []
    for rows in (10**6, 64):
        monkeypatch.setattr(capture, "FUSED_ROWS", rows)
        answers.append(CudaGraph(model, 200).answer(prompts, config, []))
    assert not [record for record in caplog.records if record.name.startswith("tometune")]
    equal = sum(one == two for one, two in zip(*answers, strict=True))
    print(f"{equal} of {len(prompts)} answers are the same")
    assert equal >= 0.9 * len(prompts)
