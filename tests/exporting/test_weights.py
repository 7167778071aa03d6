"""What training changed is looked for in the files, however little that was."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.exporting.conftest import builder_of
from tests.whole import Workplace
from tometune.exporting import build
from tometune.exporting.asked import asked_for
from tometune.exporting.build import Builder
from tometune.exporting.gate import nearer_to
from tometune.exporting.reference import Fixed

pytestmark = pytest.mark.whole


@pytest.fixture
def weak(copied: Path, trained: Workplace, tmp_path: Path) -> Builder:
    """A builder of a run whose training moved so little that logits do not tell it from rounding."""
    path = copied / "adapter" / "adapter_model.safetensors"
    weights = {name: value * (0.005 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return builder_of(copied, trained, tmp_path / "export")


def test_a_lost_adapter_never_passes_as_merged(weak, monkeypatch):
    export = asked_for(["merged_16bit"], [], weak.folder)[0]
    gate = weak.make(export)
    assert gate["passed"], gate["problems"]
    assert gate["checks"]["logits"]["base_without_adapter"] < 5e-4
    assert 0 < gate["checks"]["weights"]["changed"] < gate["checks"]["weights"]["numbers"] / 2
    weak.limits.examples = 3  # anything else than before, so that it is made again
    monkeypatch.setattr(build, "merge", lambda base, _, dtype: base.to(dtype))
    problems = weak.make(export)["problems"]
    assert problems[0].startswith("weights: 0 of ")
    assert problems[0].endswith("the adapter is not in them")


def test_a_gguf_of_the_bare_base_fails_though_its_limits_let_it(copied, trained, tmp_path, monkeypatch):
    """What 8 bits change is more than this training did, so logits cannot tell one from the other."""
    path = copied / "adapter" / "adapter_model.safetensors"
    weights = {name: value * (0.05 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    made = builder_of(copied, trained, tmp_path / "export")
    merged, gguf = asked_for(["merged_16bit", "gguf"], ["q8_0"], made.folder)
    assert made.make(merged)["passed"]
    gate = made.make(gguf)
    assert gate["passed"], gate["problems"]
    assert gate["checks"]["weights"]["verdict"] == "adapter"
    assert gate["checks"]["weights"]["share_of_change"] == pytest.approx(1, abs=0.2)
    made.clean()
    made.limits.examples = 3
    base, convert = Path(made.finished.model.id), build.llama_cpp.convert
    monkeypatch.setattr(build.llama_cpp, "convert", lambda _, *rest: convert(base, *rest))
    lost = made.make(gguf)
    assert lost["problems"][0].endswith("it is the base without the adapter")
    assert lost["checks"]["weights"]["share_of_change"] == pytest.approx(0, abs=0.2)


def test_logits_say_which_is_nearer_where_they_can():
    generator = np.random.default_rng(0)

    def drawn(size: float, around: np.ndarray) -> np.ndarray:
        logits = around + size * generator.standard_normal(around.shape)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def asked(moved: float, noise: float, of_base: bool) -> str:
        base = [drawn(1.0, np.zeros((24, 64))) for _ in range(8)]
        fixed = [Fixed([], [], [], "", drawn(moved, one), one) for one in base]
        source = base if of_base else [one.log_probabilities for one in fixed]
        return nearer_to(fixed, [drawn(noise, one) for one in source])

    assert asked(0.3, 0.1, of_base=False) == "adapter"
    assert asked(0.3, 0.1, of_base=True) == "base"
    assert asked(0.001, 0.3, of_base=True) == "cannot tell"
