"""The model card: valid metadata, the licence's duties, the sweep's table, nothing of this machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, SourceConfig, SourceKind
from tometune.config.export import ExportConfig
from tometune.config.model import LoraConfig, ModelConfig
from tometune.config.root import Config
from tometune.exporting.hub import check_push, repositories
from tometune.exporting.licences import licence_for, licence_of, licence_texts
from tometune.exporting.model_card import card, write_card, write_licence
from tometune.runs.finished import Finished, base_of

CHECKOUT = Path(__file__).parents[2]
STAGE = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.3}
GATE = {
    "passed": True,
    "problems": [],
    "engine": "llama.cpp",
    "reference": {"model": "16-bit base", "dtype": "float32", "tuned": "the adapter"},
    "checks": {
        "template": {"equal": 8, "conversations": 8},
        "logits": {"mean_divergence": 0.0123, "limit": 0.05, "from_4_bits": 0.061},
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
def test_metadata_and_text(llama, kind, relation, base, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "cache"))
    write_card(llama, kind, [("gguf-q8_0" if kind == "gguf" else kind, GATE)], tmp_path, "me/Llama-3.2-3B-tuned")
    write_licence(llama, tmp_path)
    found = ModelCard.load(tmp_path / "README.md")
    data = found.data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("llama3.2", base, relation)
    assert data["library_name"] == {"adapter": "peft", "merged_16bit": "transformers", "gguf": "gguf"}[kind]
    assert found.data.datasets == ["mlabonne/FineTome-100k", "arcee-ai/The-Tome"]
    assert "Built with Llama" in found.text
    assert "Llama 3.2 Community License, Copyright © Meta" in (tmp_path / "NOTICE").read_text()
    assert (tmp_path / "LICENSE.txt").read_text() == "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"
    for part in (
        "compared with the adapter on the base in 16 bits, which differs from the adapter on the 4-bit base, as "
        "trained, by 0.061 nats per token; logits in float32",
        "`5d3eaeb3`",
        "200,000 rows",
        "| smollm2_135m | pydocs_1k | 3 |",
        "| qa | 24 | 0.400 | 0.400 | 0.200 | 0.200 | 0.300 | 0.300 |\n| mean of tasks | | 0.400 | 0.400 |",
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


def test_a_failed_export_says_so_at_the_top(llama):
    failed = {**GATE, "passed": False, "problems": ["logits: too far"]}
    text = card(llama, "gguf", [("gguf-q8_0", GATE), ("gguf-q4_k_m", failed)], "me/Llama-x")
    assert "**This export failed its checks; do not use it.** logits: too far" in text[:900]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("unsloth/Llama-3.2-1B-Instruct", "llama3.2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("nvidia/Llama-3_1-Nemotron-51B-Instruct", "llama3.1"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama3.1"),
        ("unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit", "llama3.3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "apache-2.0"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("somebody/llama-30b", "other"),
    ],
)
def test_licences(name, tag):
    assert licence_of(name).tag == tag


def test_llama_3_requires_other_words_than_its_successors():
    first = licence_of("me/Meta-Llama-3-8B")
    assert (first.prefix, licence_of("me/Llama-3.1-8B").prefix) == ("Llama-3", "Llama")
    assert first.built_with == "Built with Meta Llama 3"
    assert first.notice.startswith("Meta Llama 3 is licensed under the Meta Llama 3 Commun")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"_name_or_path": "meta-llama/Llama-3.2-1B"}'),
        ("README.md", "---\nbase_model:\n- meta-llama/Llama-3.2-1B\n---\n# Mine"),
    ],
)
def test_the_licence_of_a_folder_is_that_of_the_model_it_was_made_from(llama, tmp_path, file, text):
    base = tmp_path / "mine"
    base.mkdir()
    (base / file).write_text(text)
    (base / "USE_POLICY.md").write_text("policy")
    local = replace(llama, base=ModelConfig(id=str(base)), model=ModelConfig(id=str(base)))
    assert licence_for(local).tag == "llama3.2"
    assert [path.name for path in licence_texts(local)] == ["USE_POLICY.md"]


def test_what_an_export_was_compared_with(llama):
    checks = {name: values for name, values in GATE["checks"].items() if name != "logits"}
    here = {**GATE, "checks": checks}
    assert (
        "with the adapter on the base in 16 bits (the machine could not load the 4-bit base that was trained); "
        in card(llama, "merged_16bit", [("merged_16bit", here)], "me/Llama-x")
    )
    trained = {**here, "reference": {"model": "as trained", "dtype": "bfloat16", "tuned": "the adapter"}}
    text = card(llama, "merged_16bit", [("merged_16bit", trained)], "me/Llama-x")
    assert "compared with the adapter as trained; logits in bfloat16." in text


def test_names_of_repositories(llama):
    assert repositories("me/x", ["gguf"]) == {"gguf": "me/x"}
    expected = {"adapter": "me/x-adapter", "merged_16bit": "me/x", "gguf": "me/x-GGUF"}
    assert repositories("me/x", ["adapter", "merged_16bit", "gguf"]) == expected
    with pytest.raises(UserError, match=r"requires a name that begins with Llama; e.g. push_to=me/Llama-tuned"):
        check_push(llama, "me/tuned", ["gguf"], True)
