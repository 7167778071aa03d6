"""The notebooks in a real kernel: a tiny base of the hub on localhost is trained, pushed, loaded back by its id."""

import ast
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporting.conftest import SHORT, SMOKE, save_base
from tests.hub import Hub
from tests.whole import environment
from tometune.exporting.reference import CONVERSATIONS, TorchEngine

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
TOKEN = "hf_may_write"
SETTINGS = " ".join((*SMOKE, *SHORT, "model.id=tester/base", "model.name=tuned", "model.weights=pretrained"))


def run(name: str, changes: Mapping[str, str], folder: Path, env: Mapping[str, str], monkeypatch) -> list[str]:
    """Execute a notebook with lines changed that set what is the user's own; return what each code cell printed."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        installs = ("%pip install", "!git clone")
        cell.source = "\n".join("" if line.startswith(installs) else line for line in cell.source.split("\n"))
        for was, now in changes.items():
            cell.source = cell.source.replace(was, now)
    here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for variable in set(os.environ) - set(env):
        monkeypatch.delenv(variable)
    for variable, value in {**env, **here}.items():
        monkeypatch.setenv(variable, value)
    try:
        NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        printed = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in cells]
        print(*printed, sep="\n---\n")  # pytest shows it where the notebook broke
    return printed


@pytest.mark.parametrize("name", ["train", "inference"])
def test_code_that_parses_and_no_outputs(name: str) -> None:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    ast.parse("\n".join(line for cell in code for line in cell.split("\n") if not line.startswith(("%", "!"))))


@pytest.mark.whole
@pytest.mark.nightly
def test_train_publish_and_ask(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add(TOKEN)
    base = hub.add_model("tester/base")
    save_base(base.folder, seed=3)
    env = environment(tmp_path / "home") | hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN}
    pytest.importorskip("nbclient")
    cells = json.loads((FOLDER / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    (own,) = (line.rstrip("\n") for cell in cells for line in cell["source"] if line.startswith("SETTINGS ="))
    changes = {
        own: f'SETTINGS = "{SETTINGS}"',
        "PUSH_TO = None": 'PUSH_TO = "tester/tuned"',
        "format=[adapter,merged_16bit,gguf]": "format=[adapter,merged_16bit]",  # GGUF has its own tests
    }
    printed = run("train", changes, tmp_path, env, monkeypatch)
    assert printed[-1].count("passed") == 2
    assert printed[-1].startswith("base {")
    assert {"tester/tuned", "tester/tuned-adapter"} == hub.private
    (made,) = (tmp_path / "outputs").iterdir()
    record = json.loads((hub.root / "models" / "tester" / "tuned" / "run.json").read_text())
    assert record["run_id"] == made.name

    mine = 'MODEL = "user/Llama-3.2-3B-FineTome"'
    told = run("inference", {mine: 'MODEL = "tester/tuned-adapter"'}, tmp_path, env, monkeypatch)[-1].strip()
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), made / "adapter")
    engine = TorchEngine("peft", tuned, tokenizer, tuned.dtype)
    assert [told] == engine.answer(engine.render(CONVERSATIONS[:1]), [128])
