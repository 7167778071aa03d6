"""The engine that decodes without padding gives the answers of the model's own `generate`."""

import logging
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM

from tests.evaluation.test_generation import TALKS, THINGS
from tometune.common.errors import UserError
from tometune.config.eval import EngineKind
from tometune.config.model import Precision
from tometune.evaluation import engines
from tometune.evaluation.engines import Engine, UnsupportedError, cuda_graph, decoder, engine_for, ragged
from tometune.evaluation.engines.cuda_graph import CudaGraph
from tometune.evaluation.generation import generate, greedy

gpu_needed = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def eager(model, longest_row=800):
    """The engine as on a GPU, without the graph and the kernel."""
    return CudaGraph(model, longest_row, capture=False)


def test_one_engine_answers_batches_of_all_sizes(model, tokenizer):
    """Cache and steps are reused between batches, and their content does not affect the next answers."""
    engine = eager(model)
    for size, most, temperature in ((1, 2, 0), (5, 1, 0), (5, 12, 1), (24, 60, 0), (3, 7, 0), (24, 30, 0)):
        settings = {"temperature": float(temperature), "seed": 3}
        expected = generate(model, tokenizer, TALKS, most, 24 if temperature else size, 512, **settings).answers
        assert generate(model, tokenizer, TALKS, most, size, 512, **settings, engine=engine).answers == expected
    assert model.config._attn_implementation == "sdpa"


def test_prompts_are_read_in_pieces_and_answering_stops_once_every_row_has_ended(model, tokenizer, monkeypatch):
    expected = generate(model, tokenizer, TALKS, 12, 24, 512).answers
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", 60)
    assert generate(model, tokenizer, TALKS, 12, 24, 512, engine=eager(model)).answers == expected
    assert decoder._chunks([70, 40, 20, 1, 59]) == [(0, 1), (1, 3), (3, 5)]
    monkeypatch.setattr(cuda_graph, "CHECK_EVERY", 4)
    config = greedy(model, tokenizer, 200)
    first = Engine(model).answer([[5, 6, 7], [9]], config, [])
    config.eos_token_id = sorted({first[0][2], first[1][2]})
    assert len(eager(model).answer([[5, 6, 7], [9]], config, [])[0]) == 4


def test_an_adapter_works_unmerged(model, tokenizer):
    base = generate(model, tokenizer, TALKS, 12, 8, 512).answers
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(model, lora)
    before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
    expected = generate(tuned, tokenizer, TALKS, 12, 8, 512).answers
    assert generate(tuned, tokenizer, TALKS, 12, 8, 512, engine=eager(tuned)).answers == expected != base
    assert all(torch.equal(weight, before[name]) for name, weight in tuned.state_dict().items())


def test_the_cache_holds_no_padding(model, tokenizer):
    engine = eager(model)
    engine.answer([[5] * 600, *([7],) * 7], greedy(model, tokenizer, 20), [])
    assert engine._cache.slots == 1024  # 600 + 7 + 8 * 20 tokens, where padded rows would take 8 * 620
    assert engine._cache.layers[0].keys.shape == (1024, 2, 8)
    engine.release()
    assert engine._cache is None
    with pytest.raises(ValueError, match="slots"):
        eager(model, longest_row=30).answer([[5] * 20], greedy(model, tokenizer, 20), [])


def test_other_attention_is_rejected(model, tokenizer, monkeypatch):
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sliding = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4)).eval()
    with pytest.raises(UnsupportedError, match="sliding_window"):
        eager(sliding).probe()
    assert sliding.config._attn_implementation == "sdpa"
    eager(model).probe()
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda *_: None)
    with pytest.raises(UnsupportedError, match="only 0 of its 2 layers"):
        eager(model).probe()


@pytest.mark.parametrize(
    ("capability", "kernel", "reason"),
    [
        (None, ragged.KERNEL, "no NVIDIA GPU found"),
        ((7, 5), ragged.KERNEL, "the GPU's compute capability is 7.5, and the attention kernel needs 8.0"),
        ((9, 0), "_none", f"torch {torch.__version__} does not have the attention kernel aten::_none"),
    ],
)
def test_where_the_engine_cannot_work_auto_falls_back_with_one_line_and_a_choice_is_rejected(
    model, caplog, monkeypatch, capability, kernel, reason
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    engines.check_engine(EngineKind.auto)
    monkeypatch.setattr(ragged, "KERNEL", kernel)
    with caplog.at_level(logging.INFO), engine_for(EngineKind.auto, model, 100) as engine:
        assert engine.name == "transformers"
    assert [record.message for record in caplog.records] == [f"eval.engine=auto: using transformers ({reason})"]
    for refused in (engines.check_engine, lambda kind: engine_for(kind, model, 100).__enter__()):
        with pytest.raises(UserError) as error:
            refused(EngineKind.cuda_graph)
        assert str(error.value) == f"eval.engine=cuda_graph: {reason}; set eval.engine=auto or transformers"


@pytest.mark.parametrize("engine", [Engine, eager])
@pytest.mark.parametrize(("free", "rows"), [(10**5, (1, 1)), (2 * 10**6, (4, 1)), (10**12, (256, 256))])
def test_rows_follow_the_free_memory(model, monkeypatch, engine, free, rows):
    """A row takes 256 bytes per token for its cache, 12 per vocabulary entry for logits, and what prompts take."""
    assert engines.rows_that_fit(engine(model), 400, 100) == engines.CPU_ROWS
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 10**13))
    monkeypatch.setattr("tometune.evaluation.engines._cache_bytes", lambda model: 256)
    monkeypatch.setattr("tometune.evaluation.engines.decoder.PREFILL_TOKENS", 100)
    monkeypatch.setattr(type(model), "device", property(lambda self: SimpleNamespace(type="cuda")))
    assert engines.rows_that_fit(engine(model), 400, 100) == rows[engine is Engine]


class Scarce(Engine):
    """Has memory for a limited number of rows."""

    def __init__(self, model, rows):
        super().__init__(model)
        self.rows, self.asked = rows, []

    def answer(self, prompts, *given):
        self.asked.append(len(prompts))
        if len(prompts) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().answer(prompts, *given)

    def release(self):
        self.asked.append("released")


def test_half_the_batch_is_tried_once(model, tokenizer, caplog):
    expected = generate(model, tokenizer, TALKS, 6, 24, 512, temperature=1.0)
    engine = Scarce(model, 8)
    found = generate(model, tokenizer, TALKS, 6, 16, 512, temperature=1.0, engine=engine)
    assert found.answers == expected.answers
    assert (expected.batch_size, found.batch_size) == (24, 8)
    assert engine.asked == [16, "released", 8, 8, 8]
    assert "out of memory with 16 prompts per batch; continuing with 8" in caplog.text
    with pytest.raises(UserError, match=r"eval\.batch_size=8: the device has too little memory"):
        generate(model, tokenizer, TALKS, 6, 16, 512, engine=Scarce(model, 4))


@pytest.mark.parametrize(("heads", "key_heads", "size", "rows"), [(24, 8, 128, 11), (9, 3, 64, 5), (8, 8, 64, 1)])
@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, gpu_needed])])
def test_attention_is_that_of_each_row_alone(heads, key_heads, size, rows, decoding, device):
    """On a GPU this compares the kernel with the reference; in a step, query heads are queries of their row."""
    torch.manual_seed(0)
    used = torch.randint(1, 700, (rows,))
    start = 3 + torch.cumsum(used + 11, 0) - (used + 11)
    queries = torch.ones_like(used) if decoding else used
    layout = ragged.Layout(
        slots=torch.empty(0),
        first=torch.cat([torch.zeros(1), queries.cumsum(0)]).int().to(device),
        start=torch.cat([start, start[-1:]]).int().to(device),
        used=used.int().to(device),
        longest_query=int(queries.max()),
        longest_row=2048,
    )
    slots = int(start[-1] + used[-1])
    query = torch.randn(int(queries.sum()), heads, size).bfloat16().to(device)
    key, value = (torch.randn(slots, key_heads, size).bfloat16().to(device) for _ in range(2))
    states = (each.transpose(0, 1)[None] for each in (query, key, value))
    (found,), _ = ragged.attend(torch.nn.Identity(), *states, None, layout=layout)
    expected = ragged._reference(query.float(), key.float(), value.float(), layout.first, layout, None)
    assert float((found.float() - expected).abs().max()) < 0.02


@pytest.mark.gpu
@pytest.mark.smollm2
@gpu_needed
def test_ties_in_16_bits_are_the_exception(smollm2_model):
    """Rounding differs with the number of rows, so some of 32 answers differ from those of `generate`."""
    model, tokenizer = smollm2_model(Precision.bf16)
    texts = [f"Say in {number} sentences what a {name} is." for number in range(1, 8) for _, name in THINGS][:32]
    asked = [[{"role": "user", "content": text}] for text in texts]
    plain = generate(model, tokenizer, asked, 48, 1, 512).answers
    with engine_for(EngineKind.cuda_graph, model, 600) as engine:
        together = generate(model, tokenizer, asked, 48, 32, 512, engine=engine).answers
    pairs = zip(plain, together, strict=True)
    assert sum(one.text.split()[:4] != two.text.split()[:4] for one, two in pairs) <= 8


def test_a_step_that_cannot_be_captured_runs_kernel_by_kernel(monkeypatch, caplog):
    def graph_of(run, decoder):
        raise RuntimeError("no graph\nmore")

    monkeypatch.setattr(cuda_graph, "_graph_of", graph_of)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert cuda_graph.captured("run", SimpleNamespace(rows=64)) == "run"
    assert "a step of 64 rows cannot be captured (no graph); it runs kernel by kernel" in caplog.text
