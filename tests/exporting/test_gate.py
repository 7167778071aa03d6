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


def test_a_changed_template_is_found_and_located(reference, merged):
    path = merged / "chat_template.jinja"
    assert "<|im_start|>assistant\n" in path.read_text()
    path.write_text(path.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant "))
    checks, problems = check(reference, merged)
    assert problems[0].startswith("template: ")
    assert "differ from token" in problems[0]
    assert "logits" not in checks


@pytest.mark.parametrize(("name", "factor"), [("model.layers.1.mlp.down_proj", 0.5), ("model.norm", float("nan"))])
def test_wrong_weights_are_found(reference, merged, name, factor):
    path = merged / "model.safetensors"
    weights = load_file(path)
    weights[f"{name}.weight"] *= factor
    save_file(weights, path, metadata={"format": "pt"})
    checks, problems = check(reference, merged)
    assert problems[0].startswith("logits: differ from the adapter by ")
    assert ("nan" in problems[0]) == (name == "model.norm")
    assert not checks["logits"]["mean_divergence"] < 3 * checks["logits"]["limit"]


EVEN = np.log(np.full((1, 4), 0.25, np.float32))


@pytest.mark.parametrize(
    ("examples", "changed", "passes"), [(1, 1, True), (6, 1, True), (6, 6, False), (50, 1, True), (50, 25, False)]
)
def test_the_limit_of_rouge_takes_the_number_of_examples_into_account(examples, changed, passes):
    """One other answer of six changes the mean by more than 0.05, which shows nothing."""
    texts = [f"the answer {number}" for number in range(examples)]
    given = [Example([1], 1, [text], text) for text in texts]
    engine = SimpleNamespace(
        render=lambda _: [[1, 2]],
        log_probabilities=lambda *_: [EVEN],
        answer=lambda *_: ["another"] * changed + texts[changed:],
    )
    tuned = Reference([[]], [[1, 2]], [[3]], [EVEN], given, "as trained", "float32")
    checks, problems = compare(engine, "merged_16bit", tuned, None, LIMITS)
    assert checks["rouge"]["same_answers"] == examples - changed
    after = 1 - changed / examples
    says = f"rouge: ROUGE-L is {after:.3f} on {examples} examples and 1.000 for the adapter, a change of -"
    assert [problem[: len(says)] for problem in problems] == ([] if passes else [says])


def test_a_wrong_16_bit_base_and_a_doubled_begin_of_text():
    engine = SimpleNamespace(render=lambda _: [[1, 1, 2]], log_probabilities=lambda *_: [EVEN])
    tuned = Reference([[]], [[1, 1, 2]], [[3]], [EVEN], [], "16-bit base", "float32", from_4_bits=0.5)
    checks, problems = compare(engine, "merged_16bit", tuned, None, LIMITS)
    assert checks["logits"]["from_4_bits"] == 0.5
    assert problems[0].endswith("more than 0.3 (export.max_divergence.from_4_bits); is export.base the right model?")
    _, problems = compare(engine, "merged_16bit", tuned, 1, LIMITS)
    assert problems == ["template: two begin-of-text tokens at the start"]
