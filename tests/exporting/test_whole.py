"""`export` as a user runs it: each format made, loaded again, held against the adapter, found again."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from tests.exporting.conftest import gate_of

pytestmark = pytest.mark.whole
FORMATS = ("format=[adapter,merged_16bit,gguf]", "quant=[q8_0,q4_k_m]")
ALL = (*FORMATS, "export.max_divergence.q4_k_m=2")  # random weights have no structure that 4 bits could keep


@pytest.fixture(scope="module")
def exported(trained):
    done = trained.verb("export", f"run={trained.run_folder().name}", *ALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": passed") == 4
    return trained.run_folder() / "export"


def test_each_export_passed_its_gate_in_its_users_engine(exported):
    names = {"adapter": "peft", "merged_16bit": "transformers", "gguf-q8_0": "llama.cpp", "gguf-q4_k_m": "llama.cpp"}
    assert sorted(path.name for path in exported.iterdir()) == sorted(names)
    for name, engine in names.items():
        gate = gate_of(exported / name)
        checks = gate["checks"]
        assert gate["passed"]
        assert gate["engine"].startswith(engine)
        assert checks["template"]["equal"] == checks["template"]["conversations"] == 8
        assert checks["rouge"]["examples"] == 8
        assert checks["logits"]["mean_divergence"] <= checks["logits"]["limit"]
        assert checks["logits"]["base_without_adapter"] > 0.01, "training moved nothing: the gate could not tell"
    assert gate_of(exported / "adapter")["checks"]["logits"]["mean_divergence"] == 0
    assert gate_of(exported / "adapter")["checks"]["greedy"]["equal"] == 8


def test_what_travels_along(exported, trained):
    template = {(path / "chat_template.jinja").read_text() for path in exported.iterdir()}
    assert len(template) == 1
    for folder in exported.iterdir():
        names = {path.name for path in folder.iterdir()}
        assert {"tokenizer.json", "generation_config.json", "run.json", "README.md", "gate.json"} <= names
        texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja", "")]
        assert not [text for text in texts if str(trained.folder) in text], "a path of this machine"
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == 2
        assert ModelCard.load(folder / "README.md").data.license == "other"
    assert json.loads((exported / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert "TEMPLATE" in (exported / "gguf-q8_0" / "Modelfile").read_text()


def test_another_base_of_the_same_shape_fails_the_gate(trained):
    folder = trained.folder / "wrong"
    run = f"run={trained.run_folder().name}"
    done = trained.verb("export", run, "export.base=other", f"export.folder={folder}", "format=[merged_16bit,gguf]")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert re.match(r"GateError: merged_16bit failed its gate: logits: .* nats a token from the adapter, at most", said)
    assert not gate_of(folder / "merged_16bit")["passed"]
    assert "This export failed its gate" in (folder / "merged_16bit" / "README.md").read_text()
    assert not list(folder.glob("gguf*"))
