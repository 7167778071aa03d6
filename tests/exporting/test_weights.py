"""What training changed is looked for in the files, however little that was."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.exporting.conftest import builder_of
from tests.whole import Workplace
from tometune.exporting import build
from tometune.exporting.asked import asked_for
from tometune.exporting.build import Builder

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
