"""The notebooks, run by IPython, twice in one folder: a tiny base of the hub on localhost is trained, pushed and loaded
back by its id; a tiny table is planned, made and shown."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporting.conftest import SHORT, SMOKE, TOKEN, save_base
from tests.whole import Workplace
from tometune.exporting.reference import CONVERSATIONS, TorchEngine

SETTINGS = " ".join((*SMOKE, *SHORT, "model.id=tester/base", "model.name=tuned", "model.weights=pretrained"))
CHANGES = {
    "%pip": "#",
    "!test -d": "#",
    "SETTINGS = ": f'SETTINGS = "{SETTINGS}"  # ',
    "PUSH_TO = None": 'PUSH_TO = "tester/tuned"',
    "format=[adapter,merged_16bit,gguf]": "format=[adapter,merged_16bit]",  # GGUF has its own tests
    "user/Llama-3.2-3B-FineTome": "tester/tuned-adapter",
}
"""Lines that set what is the user's own, and what they become."""

TABLE = {
    "MODEL = ": f'MODEL = "{" ".join(("+experiment=smoke", "eval.limit=1", *SHORT))}"  # ',
    "10_000": "16",
    "data=mix_300k": "data=pydocs_3k",
    "16,20_000,30_000": "16,24",
    "seed=0,1,2": "seed=0",
}
"""Lines that set model, data and seeds."""


def execute(place: Workplace, name: str, changes: dict[str, str], env: dict[str, str]) -> str:
    """Run the code cells of a notebook in one shell and return what they print."""
    code = "\n".join(code_of(name))
    for was, now in changes.items():
        assert was in code or changes is CHANGES
        code = code.replace(was, now)
    (place.folder / f"{name}.ipy").write_text(code)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = place.python("-m", "IPython", "--colors=NoColor", f"{name}.ipy", env={**env, "PATH": path}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code_of(name: str) -> list[str]:
    """Return the code cells of a notebook; none has outputs."""
    path = Path(__file__).parents[2] / "docs" / "notebooks" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_code_that_parses_and_no_outputs():
    for name in ("train", "table", "inference"):
        lines = "\n".join(code_of(name)).split("\n")
        ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


@pytest.mark.whole
@pytest.mark.nightly
def test_train_publish_and_ask(hub, place, tmp_path):
    pytest.importorskip("IPython")
    hub.tokens.add(TOKEN)
    base = save_base(hub.add_model("tester/base").folder, seed=3)
    env = hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN}
    printed = {name: execute(place, name, CHANGES, env) for name in ("train", "inference")}
    assert printed["train"].count("16bit passed") + printed["train"].count("adapter passed") == 2
    assert "base {'rouge1'" in printed["train"]
    assert {"tester/tuned", "tester/tuned-adapter"} == hub.private
    run = place.run_folder()
    assert json.loads((hub.root / "models" / "tester" / "tuned" / "run.json").read_text())["run_id"] == run.name

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter")
    engine = TorchEngine("peft", tuned, AutoTokenizer.from_pretrained(base))
    assert [printed["inference"].strip()] == engine.answer(engine.render(CONVERSATIONS[:1]), [128])

    again = execute(place, "train", CHANGES, env)
    assert printed["train"].splitlines()[-4:] == again.splitlines()[-4:]
    assert place.run_folder() == run, "the run is found"


@pytest.mark.whole
@pytest.mark.nightly
def test_a_table_is_planned_made_and_shown_and_found_again(place):
    pytest.importorskip("IPython")
    changes = {key: CHANGES[key] for key in ("%pip", "!test -d")} | TABLE
    first, second = (execute(place, "table", changes, {}) for _ in range(2))
    assert "2 runs: 0 done, 2 left" in first
    assert "1 earlier run" in first, "the speed is measured"
    assert "2 runs: 2 done, 0 left" in second
    shown = [text.rpartition("\nbase model ")[2].splitlines() for text in (first, second)]
    assert shown[0] == shown[1]
    assert [line.split()[:2] for line in shown[0][1:3]] == [["mix-16", "1"], ["mix-24", "1"]]
    assert "IPython.core.display.HTML" in shown[0][3]
    records = [json.loads(path.read_text()) for path in place.folder.glob("results/table_t4/*/run.json")]
    assert [record["attempts"] for record in records] == [1, 1]
