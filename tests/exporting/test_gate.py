"""The gate finds planted faults: another base, a changed template, a damaged weight, an adapter that was lost."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exporting.conftest import LIMITS, gate_of
from tometune.exporting import llama_cpp
from tometune.exporting.asked import asked_for
from tometune.exporting.build import Builder
from tometune.exporting.engines import Answering, EngineError, TorchEngine
from tometune.exporting.gate import Outcome, hold

pytestmark = pytest.mark.whole


def held(builder: Builder, folder: Path) -> Outcome:
    """Hold a merged model in another folder at the gate."""
    engine = TorchEngine.of_merged(folder, torch.float32, torch.device("cpu"), Answering(torch.float32, 4))
    return hold(engine, "merged_16bit", builder.references.as_trained, builder.tokenizer.bos_token_id, LIMITS)


@pytest.fixture
def merged(builder: Builder, tmp_path: Path) -> Path:
    """A copy of the merged model that a test may spoil."""
    return Path(shutil.copytree(builder.folder / "merged_16bit", tmp_path / "merged"))


def test_an_unspoilt_copy_passes(builder, merged):
    assert held(builder, merged).passed


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("<|im_start|>assistant\n", "<|im_start|>assistant "),
        ("named SmolLM", "named Llama"),
        ("{% for message", "<|im_start|>{% for message"),
    ],
)
def test_a_changed_template_is_found_and_placed(builder, merged, was, now):
    path = merged / "chat_template.jinja"
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, now))
    outcome = held(builder, merged)
    assert not outcome.passed
    assert outcome.problems[0].startswith("template: ")
    assert "differ from token" in outcome.problems[0]
    assert "logits" not in outcome.checks


def test_a_damaged_weight_is_found(builder, merged):
    path = merged / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.down_proj.weight"] *= 0.5
    save_file(weights, path, metadata={"format": "pt"})
    outcome = held(builder, merged)
    assert [problem.partition(":")[0] for problem in outcome.problems] == ["logits"]


def test_a_lost_adapter_is_found(builder, merged):
    """The base by itself: what was trained is not in it."""
    base = Path(builder.finished.model.id)
    shutil.copyfile(base / "model.safetensors", merged / "model.safetensors")
    outcome = held(builder, merged)
    assert not outcome.passed
    logits = outcome.checks["logits"]
    assert logits["mean_divergence"] == pytest.approx(logits["base_without_adapter"], rel=0.01)
    assert logits["mean_divergence"] > 3 * logits["limit"]


def test_numbers_that_are_none_fail(builder, merged):
    path = merged / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    assert held(builder, merged).problems[0].startswith("logits: nan")


def test_a_changed_file_is_noticed_and_an_engine_that_breaks_fails_its_export_alone(builder, monkeypatch):
    export = asked_for(["adapter"], [], builder.folder)[0]
    made = gate_of(export.folder)
    assert made["checks"]["rouge"] == {"examples": 4, "stored": True}
    assert builder.make(export)["finished"] == made["finished"]
    path = export.folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    assert builder.make(export)["finished"] > made["finished"]
    assert path.read_bytes() == whole

    def aborted(*_: object) -> None:
        raise EngineError("llama.cpp ended with signal 6: GGML_ASSERT")

    monkeypatch.setattr(llama_cpp, "quantise", aborted)
    monkeypatch.setattr(llama_cpp, "convert", lambda *_: None)
    gates = [builder.make(one) for one in asked_for(["gguf", "merged_16bit"], ["q8_0"], builder.folder)]
    assert [gate["passed"] for gate in gates] == [True, False]
    failed = gate_of(builder.folder / "gguf-q8_0")
    assert failed["problems"] == ["engine: llama.cpp ended with signal 6: GGML_ASSERT"]
