"""The notebooks, run by IPython: a tiny base of the hub on localhost is trained, pushed, loaded back by its id."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporting.conftest import SHORT, SMOKE, save_base
from tests.hub import Hub
from tests.whole import Workplace
from tometune.exporting.reference import CONVERSATIONS, TorchEngine

TOKEN = "hf_may_write"
SETTINGS = " ".join((*SMOKE, *SHORT, "model.id=tester/base", "model.name=tuned", "model.weights=pretrained"))
CHANGES = {
    "%pip install": "#",
    "!git clone": "#",
    "SETTINGS = ": f'SETTINGS = "{SETTINGS}"  # ',
    "PUSH_TO = None": 'PUSH_TO = "tester/tuned"',
    "format=[adapter,merged_16bit,gguf]": "format=[adapter,merged_16bit]",  # GGUF has its own tests
    "user/Llama-3.2-3B-FineTome": "tester/tuned-adapter",
}
"""Lines that set what is the user's own, and what they become."""


def code_of(name: str) -> list[str]:
    """Return the code cells of a notebook; none has outputs."""
    path = Path(__file__).parents[2] / "docs" / "notebooks" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_code_that_parses_and_no_outputs() -> None:
    for name in ("train", "inference"):
        lines = "\n".join(code_of(name)).split("\n")
        ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


@pytest.mark.whole
@pytest.mark.nightly
def test_train_publish_and_ask(hub: Hub, place: Workplace, tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    hub.tokens.add(TOKEN)
    base = save_base(hub.add_model("tester/base").folder, seed=3)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN, "PATH": path}
    printed = {}
    for name in ("train", "inference"):
        code = "\n".join(code_of(name))
        for was, now in CHANGES.items():
            code = code.replace(was, now)
        (place.folder / f"{name}.ipy").write_text(code)
        done = place.python("-m", "IPython", "--colors=NoColor", f"{name}.ipy", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        printed[name] = done.stdout
    assert printed["train"].count("16bit passed") + printed["train"].count("adapter passed") == 2
    assert "base {'rouge1'" in printed["train"]
    assert {"tester/tuned", "tester/tuned-adapter"} == hub.private
    run = place.run_folder()
    assert json.loads((hub.root / "models" / "tester" / "tuned" / "run.json").read_text())["run_id"] == run.name

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter")
    engine = TorchEngine("peft", tuned, AutoTokenizer.from_pretrained(base))
    assert [printed["inference"].strip()] == engine.answer(engine.render(CONVERSATIONS[:1]), [128])
