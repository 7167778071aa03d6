"""The model card: valid metadata, the licence's duties, the sweep's table, nothing of this machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tometune.config.data import DataConfig, SourceConfig, SourceKind
from tometune.config.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.lora import LoraConfig
from tometune.config.model import ModelConfig, Quantization
from tometune.config.root import Config
from tometune.exporting.card import card, write_card
from tometune.exporting.finished import Finished, base_of
from tometune.exporting.hub import check_push, repositories
from tometune.exporting.licences import licence_of

CHECKOUT = Path(__file__).parents[2]
STAGE = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.3}
GATE = {
    "passed": True,
    "problems": [],
    "engine": "llama.cpp",
    "checks": {
        "template": {"equal": 8, "conversations": 8},
        "logits": {"mean_divergence": 0.0123, "limit": 0.05},
        "rouge": {"same_answers": 40, "examples": 50, "adapter": STAGE, "export": STAGE, "limit": 0.05},
    },
}


@pytest.fixture
def llama(tmp_path: Path) -> Finished:
    """A finished run of the default recipe, one of a sweep."""
    folder = tmp_path / "sweep" / "llama32_3b-mix_300k-s0-1a2b3c4d"
    folder.mkdir(parents=True)
    table = json.loads((CHECKOUT / "docs" / "results" / "table_pydocs" / "table.json").read_text())
    (folder.parent / "table.json").write_text(json.dumps(table))
    sources = {"mlabonne/FineTome-100k": 100_000, "arcee-ai/The-Tome": 200_000}
    (folder / "mix.json").write_text(json.dumps({"sources": sources}))
    model = ModelConfig()
    hub = SourceConfig(kind=SourceKind.hub, id="mlabonne/FineTome-100k")
    lora = LoraConfig(target_modules=["q_proj", "v_proj"])
    config = Config(data=DataConfig(base=hub, pool=replace(hub, id="arcee-ai/The-Tome")), lora=lora)
    scores = {**STAGE, "tasks": {"qa": {**STAGE, "examples": 24}}, "limited": False}
    record = {
        "run_id": folder.name,
        "seed": 0,
        "model": {"id": model.id, "revision": "0" * 40, "quantization": "nf4"},
        "data": {"name": "mix_300k", "digest": "5d3eaeb3", "rows": 300_000, "trainable_tokens": 70_000_000},
        "train": {"steps": 4000},
        "eval": {"base": scores, "tuned": scores},
        "versions": {"torch": "2.13.0"},
    }
    return Finished(folder, record, config, model, base_of(model, ExportConfig()))


@pytest.mark.parametrize(
    ("kind", "relation", "base"),
    [
        ("adapter", "adapter", "unsloth/Llama-3.2-3B-Instruct-bnb-4bit"),
        ("merged_16bit", "finetune", "unsloth/Llama-3.2-3B-Instruct"),
        ("gguf", "quantized", "unsloth/Llama-3.2-3B-Instruct"),
    ],
)
def test_metadata_and_text(llama, kind, relation, base, tmp_path):
    write_card(llama, kind, [("gguf-q8_0" if kind == "gguf" else kind, GATE)], tmp_path, "me/Llama-3.2-3B-tuned")
    found = ModelCard.load(tmp_path / "README.md")
    assert (found.data.license, found.data.base_model, found.data.library_name) == (
        "llama3.2",
        base,
        {"adapter": "peft", "merged_16bit": "transformers", "gguf": "gguf"}[kind],
    )
    assert found.data.to_dict()["base_model_relation"] == relation
    assert found.data.datasets == ["mlabonne/FineTome-100k", "arcee-ai/The-Tome"]
    assert "Built with Llama" in found.text
    assert "Llama 3.2 Community License, Copyright © Meta" in (tmp_path / "NOTICE").read_text()
    for part in (
        "`5d3eaeb3`",
        "200,000 rows",
        "| smollm2_135m | pydocs_1k | 3 |",
        "| qa | 24 |",
        "0.012 (0.05)",
        "r 16",
    ):
        assert part in found.text
    assert str(llama.folder.parent) not in found.content
    loads = {
        "adapter": ["AutoPeftModelForCausalLM", "load_in_4bit=True", "vllm serve"],
        "merged_16bit": ["AutoModelForCausalLM", "FastLanguageModel", "vllm serve me/Llama-3.2-3B-tuned"],
        "gguf": ["llama-cli -hf me/Llama-3.2-3B-tuned:Q8_0", "ollama run hf.co/me/Llama-3.2-3B-tuned:Q8_0"],
    }[kind]
    assert all(part in found.text for part in loads)


def test_a_failed_gate_is_the_first_thing_said(llama):
    failed = {**GATE, "passed": False, "problems": ["logits: too far"]}
    text = card(llama, "gguf", [("gguf-q8_0", GATE), ("gguf-q4_k_m", failed)], "me/Llama-x")
    assert "**This export failed its gate; do not use it.** logits: too far" in text[:900]


def test_a_name_that_the_licence_does_not_allow(llama):
    with pytest.raises(UserError, match=r"asks for a name that begins with Llama; e.g. push_to=me/Llama-tuned"):
        check_push(llama, "me/tuned", ["gguf"])


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("unsloth/Llama-3.2-1B-Instruct", "llama3.2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.1-8B", "llama3.1"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("somebody/anything", "other"),
    ],
)
def test_licences(name, tag):
    assert licence_of(name).tag == tag


def test_the_16_bit_base_of_a_4_bit_one():
    for ending in ("-bnb-4bit", "-unsloth-bnb-4bit"):
        model = ModelConfig(id=f"unsloth/Llama-3.2-3B-Instruct{ending}", revision="0" * 40)
        base = base_of(model, ExportConfig())
        assert (base.id, base.revision) == ("unsloth/Llama-3.2-3B-Instruct", "main")
        assert base.quantization is Quantization.none
    on_the_fly = ModelConfig(id="me/model", revision="abc")
    assert base_of(on_the_fly, ExportConfig()).id == "me/model"
    assert base_of(on_the_fly, ExportConfig(base="me/other", base_revision="v2")).revision == "v2"


def test_a_repository_a_format():
    assert repositories("me/x", ["gguf"]) == {"gguf": "me/x"}
    assert repositories("me/x", ["adapter", "merged_16bit", "gguf"]) == {
        "adapter": "me/x-adapter",
        "merged_16bit": "me/x",
        "gguf": "me/x-GGUF",
    }
