"""Compiled parts give the model's results, one compilation serves all layers, and nothing stays compiled."""

import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from tometune.evaluation.engines import cuda_graph
from tometune.evaluation.engines.compiled import ROTARY, CompiledParts
from tometune.evaluation.engines.cuda_graph import CudaGraph
from tometune.evaluation.generation import greedy
from tometune.models.lora_rounding import round_once

gpu_needed = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def llama(layers, hidden=64, **more):
    torch.manual_seed(0)
    heads = {"num_attention_heads": hidden // 16, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, **heads, **more
    )
    return LlamaForCausalLM(config).eval().bfloat16()


@pytest.mark.parametrize("adapted", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_one_compilation_serves_all_layers_and_lengths(adapted):
    torch._dynamo.reset()
    model, rotary = llama(3, hidden=96), vars(sys.modules[LlamaForCausalLM.__module__])[ROTARY]
    if adapted:
        lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora)
        round_once(model)
    before = counters["stats"]["unique_graphs"]
    parts = CompiledParts(model)
    for rows in (100, 200):
        ids = torch.randint(0, 400, (1, rows))
        with torch.no_grad():
            expected = model(ids).logits
            with parts.compiled(rows):
                torch.testing.assert_close(model(ids).logits, expected, rtol=0.02, atol=0.02)
                assert vars(sys.modules[LlamaForCausalLM.__module__])[ROTARY] is not rotary
            assert torch.equal(model(ids).logits, expected)
        assert counters["stats"]["unique_graphs"] - before == 3 + adapted, "norm, rotary, MLP, and q_proj by itself"
    assert vars(sys.modules[LlamaForCausalLM.__module__])[ROTARY] is rotary
    assert not any(part._compiled_call_impl for part in model.modules())


def test_few_rows_do_not_use_them():
    model = llama(1)
    for rows, works in ((32, True), (999, False)):
        parts = CompiledParts(model)
        parts.works = works
        with parts.compiled(rows):
            assert not any(part._compiled_call_impl for part in model.modules())


def test_the_recorded_engine_includes_compiling():
    engine = CudaGraph(llama(1), 100, capture=False, compiles=True)
    assert [engine.kind(rows) for rows in (32, 33)] == ["cuda_graph", "cuda_graph, compiled"]
    engine._parts.works = False
    assert engine.kind(33) == CudaGraph(llama(1), 100, capture=False).kind(33) == "cuda_graph"


def test_where_compiling_fails_a_step_is_captured_without(monkeypatch, caplog):
    """And the engine does not try again; where it cannot be captured at all, the step itself is returned."""
    broken, parts = [RuntimeError("no compiler\nmore"), None, RuntimeError("")], CompiledParts(llama(1))

    def graph_of(run, decoder):
        if error := broken.pop(0):
            raise error
        return "captured"

    monkeypatch.setattr(cuda_graph, "_graph_of", graph_of)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    decoder = SimpleNamespace(rows=64)
    assert cuda_graph.captured(None, decoder, parts) == "captured"
    assert not parts.works
    assert cuda_graph.captured("run", decoder, parts) == "run"
    assert [record.getMessage() for record in caplog.records] == [
        "cuda_graph: a step of 64 rows cannot be captured with compiled parts (no compiler); "
        "continuing without them, slower",
        "cuda_graph: a step of 64 rows cannot be captured (RuntimeError); it runs kernel by kernel, which is slower",
    ]
    broken[:] = [torch.OutOfMemoryError("full")]
    with pytest.raises(torch.OutOfMemoryError):
        cuda_graph.captured("run", decoder, CompiledParts(llama(1)))


@pytest.mark.gpu
@gpu_needed
@pytest.mark.parametrize("adapted", [False, True])
def test_many_rows_answer_the_same_compiled(adapted, tokenizer, caplog):
    """Of 96 answers of 24 tokens from random weights, whose ties are many, nearly all are the same."""
    model = llama(6, 512, max_position_embeddings=512).cuda()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"))
        round_once(model)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    config = greedy(model, tokenizer, 24)
    prompts = [[(7 * row + token) % 400 for token in range(5 + row)] for row in range(96)]
    answers = []
    for compiles in (False, True):
        answers.append(CudaGraph(model, 200, compiles=compiles).answer(prompts, config, []))
    assert not [record for record in caplog.records if record.name.startswith("tometune")]
    equal = sum(one == two for one, two in zip(*answers, strict=True))
    print(f"{equal} of {len(prompts)} answers are the same")
    assert equal >= 0.9 * len(prompts)
