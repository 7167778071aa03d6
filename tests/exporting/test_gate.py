"""The gate finds planted faults: a changed template, a damaged weight, a lost adapter, numbers that are none."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporting.conftest import LIMITS
from tometune.exporting.gate import Check, Example, Reference, compare
from tometune.exporting.reference import TorchEngine

pytestmark = pytest.mark.whole


def check(reference: Reference, folder: Path) -> Check:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TorchEngine("transformers", model, tokenizer)
    return compare(engine, "merged_16bit", reference, tokenizer.bos_token_id, LIMITS)


@pytest.fixture
def merged(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported / "merged_16bit", tmp_path / "merged"))


@pytest.mark.parametrize(
    ("was", "now"), [("<|im_start|>assistant\n", "<|im_start|>assistant "), ("named SmolLM", "named Llama")]
)
def test_a_changed_template_is_found_and_located(reference, merged, was, now):
    path = merged / "chat_template.jinja"
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, now))
    checks, problems = check(reference, merged)
    assert problems[0].startswith("template: ")
    assert "differ from token" in problems[0]
    assert "logits" not in checks


@pytest.mark.parametrize("fault", ["damaged weight", "lost adapter", "not a number"])
def test_wrong_weights_are_found(trained, reference, merged, fault):
    path = merged / "model.safetensors"
    weights = load_file(path)
    if fault == "damaged weight":
        weights["model.layers.1.mlp.down_proj.weight"] *= 0.5
    elif fault == "lost adapter":
        weights = load_file(trained.folder / "base" / "model.safetensors")
    else:
        weights["model.norm.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    checks, problems = check(reference, merged)
    assert problems[0].startswith("logits: differ from the adapter by ")
    assert ("nan" in problems[0]) == (fault == "not a number")
    assert not checks["logits"]["mean_divergence"] < 3 * checks["logits"]["limit"]


def test_other_answers_change_rouge(reference, merged, monkeypatch):
    checks, problems = check(reference, merged)
    assert (set(checks), problems) == ({"template", "logits", "rouge"}, [])
    texts = [one.references[0] for one in reference.examples]
    monkeypatch.setattr(TorchEngine, "answer", lambda *_: texts)
    _, problems = check(reference, merged)
    assert problems[0].startswith("rouge: ROUGE-L is 1.000 on 8 examples and ")


@pytest.mark.parametrize(
    ("examples", "changed", "passes"), [(1, 1, True), (6, 1, True), (6, 6, False), (50, 1, True), (50, 25, False)]
)
def test_the_limit_of_rouge_takes_the_number_of_examples_into_account(examples, changed, passes):
    """One other answer of six changes the mean by more than 0.05, which shows nothing."""
    even, texts = np.log(np.full((1, 4), 0.25, np.float32)), [f"the answer {number}" for number in range(examples)]
    given = [Example([1], 1, [text], text) for text in texts]
    engine = SimpleNamespace(
        render=lambda _: [[1, 2]],
        log_probabilities=lambda *_: [even],
        answer=lambda *_: ["another"] * changed + texts[changed:],
    )
    tuned = Reference([[]], [[1, 2]], [[3]], [even], given, "as trained", "float32")
    checks, problems = compare(engine, "merged_16bit", tuned, None, LIMITS)
    assert checks["rouge"]["same_answers"] == examples - changed
    assert (problems == []) == passes, problems


def test_a_wrong_16_bit_base_and_a_doubled_begin_of_text():
    even = np.log(np.full((1, 4), 0.25, np.float32))
    engine = SimpleNamespace(render=lambda _: [[1, 1, 2]], log_probabilities=lambda *_: [even])
    tuned = Reference([[]], [[1, 1, 2]], [[3]], [even], [], "16-bit base", "float32", from_4_bits=0.5)
    checks, problems = compare(engine, "merged_16bit", tuned, None, LIMITS)
    assert checks["logits"]["from_4_bits"] == 0.5
    assert problems[0].endswith("more than 0.3 (export.max_divergence.from_4_bits); is export.base the right model?")
    _, problems = compare(engine, "merged_16bit", tuned, 1, LIMITS)
    assert problems == ["template: two begin-of-text tokens at the start"]
