"""The model card: valid metadata, the licence's duties, the sweep's table, nothing of this machine."""

import shutil
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
from tometune.exporting.model_card import Licence, card, licence_for, licence_of, write_licence
from tometune.runs.finished import Finished, base_of

CHECKOUT = Path(__file__).parents[2]
STAGE = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.3}
GATE = {
    "passed": True,
    "dtype": "float16",
    "problems": [],
    "engine": "llama.cpp",
    "reference": {"model": "16-bit base", "dtype": "float32", "tuned": "the adapter"},
    "checks": {
        "change": {"share": 0.9941, "relative_error": 0.231},
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
    shutil.copy(CHECKOUT / "docs" / "results" / "table_pydocs" / "table.json", folder.parent)
    (folder / "mix.json").write_text('{"sources": {"mlabonne/FineTome-100k": 100000, "arcee-ai/The-Tome": 200000}}')
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


STATED = [
    "compared with the adapter on the base in 16 bits, which differs from the adapter on the 4-bit base, as trained, "
    "by 0.061 nats per token; logits in float32",
    "`5d3eaeb3`",
    "200,000 rows",
    "| smollm2_135m | pydocs_1k | 3 |",
    "| qa | 24 | 0.400 | 0.400 | 0.200 | 0.200 | 0.300 | 0.300 |\n| mean of tasks | | 0.400 | 0.400 |",
    "| 99.4 % (0.23) | 8 of 8 equal, token by token | 0.012 (0.05) | 40 of 50 |",
    "r 16",
    "**Built with Llama.**",
    "- Include a copy of the Llama 3.2 Community License: https://www.llama.com/llama3_2/license/",
    "- Data (base): mlabonne/FineTome-100k; licence: see its page, https://huggingface.co/datasets/mlabonne/",
]


@pytest.mark.parametrize(
    ("kind", "library", "relation", "base", "loads"),
    [
        ("adapter", "peft", "adapter", "3B-Instruct-bnb-4bit", ["AutoPeftModelForCausalLM", "load_in_4bit=True"]),
        ("merged_16bit", "transformers", "finetune", "3B-Instruct", ["dtype=torch.float16", "vllm serve me/Llama-x"]),
        ("gguf", "gguf", "quantized", "3B-Instruct", ["llama-cli -hf me/Llama-x:Q8_0", "ollama run hf.co/me/Llama-x"]),
    ],
)
def test_metadata_and_text(llama, kind, library, relation, base, loads):
    found = ModelCard(card(llama, kind, [("gguf-q8_0" if kind == "gguf" else kind, GATE)], "me/Llama-x"))
    assert found.data.to_dict() == {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "license": "llama3.2",
        "base_model": f"unsloth/Llama-3.2-{base}",
        "base_model_relation": relation,
        "datasets": ["mlabonne/FineTome-100k", "arcee-ai/The-Tome"],
        "tags": ["tometune", "lora", "sft"],
    }
    assert [part for part in [*STATED, *loads] if part not in found.text] == []
    assert str(llama.folder.parent) not in found.content


AS_TRAINED = {"model": "as trained", "dtype": "bfloat16", "tuned": "the adapter"}


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"passed": False, "problems": ["no"]}, "**This export failed its checks; do not use it.** no"),
        ({"checks": {}}, "on the base in 16 bits (the machine could not load the 4-bit base that was trained); "),
        ({"reference": AS_TRAINED}, "compared with the adapter as trained; logits in bfloat16."),
    ],
)
def test_what_the_checks_found(llama, gate, says):
    assert says in card(llama, "merged_16bit", [("merged_16bit", {**GATE, **gate})], "me/Llama-x")


def test_a_run_without_scores_of_the_base_model_has_a_card(llama):
    del llama.record["eval"]["base"]
    text = card(llama, "gguf", [("q4_k_m", GATE)], "me/Llama-x")
    assert "held-out examples, for the tuned model of this run:" in text
    assert "| qa | 24 | – | 0.400 | – | 0.200 | – | 0.300 |" in text
    assert "| mean of tasks | | – | 0.400 |" in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"_name_or_path": "meta-llama/Llama-3.2-1B"}'),
        ("README.md", "---\nbase_model:\n- meta-llama/Llama-3.2-1B\n---\n# Mine"),
    ],
)
def test_the_licence_of_a_folder_is_that_of_the_model_it_was_made_from(llama, tmp_path, file, text):
    (tmp_path / file).write_text(text)
    assert licence_for(replace(llama, base=ModelConfig(id=str(tmp_path)))).tag == "llama3.2"


def test_files_and_names_that_the_licence_requires(llama, tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    (base / "USE_POLICY.md").write_text("policy")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(base))
    write_licence(llama, tmp_path)
    assert (tmp_path / "USE_POLICY.md").read_text() == "policy"
    assert (tmp_path / "NOTICE").read_text().startswith("Llama 3.2 is licensed under the Llama 3.2 Community License, ")
    assert repositories("me/x", ["gguf"]) == {"gguf": "me/x"}
    expected = {"adapter": "me/x-adapter", "merged_16bit": "me/x", "gguf": "me/x-GGUF"}
    assert repositories("me/x", ["adapter", "merged_16bit", "gguf"]) == expected
    with pytest.raises(UserError, match=r"requires a name that begins with Llama; e.g. push_to=me/Llama-tuned"):
        check_push(llama, "me/tuned", ["gguf"], True)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("unsloth/Llama-3.2-1B-Instruct", Licence("llama3.2", "Llama 3.2", "Llama", "Llama")),
        ("meta-llama/Meta-Llama-3-8B-Instruct", Licence("llama3", "Meta Llama 3", "Meta Llama 3", "Llama-3")),
        ("nvidia/Llama-3_1-Nemotron-51B-Instruct", Licence("llama3.1", "Llama 3.1", "Llama", "Llama")),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", Licence("llama3.1", "Llama 3.1", "Llama", "Llama")),
        ("unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit", Licence("llama3.3", "Llama 3.3", "Llama", "Llama")),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", Licence("apache-2.0")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", Licence("apache-2.0")),
        ("somebody/llama-30b", Licence("other")),
    ],
)
def test_licences(name, licence):
    assert licence_of(name) == licence
