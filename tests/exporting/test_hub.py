"""Publishing, against the hub on localhost: pushed, broken off in the middle, gone on with, loaded back by its id."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.whole import Workplace
from tometune.exporting.hub import files_of

pytestmark = pytest.mark.whole
TOKEN = "hf_may_write"
ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for prompt in json.loads(sys.argv[2]):
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)
    answers.append(answer[0].tolist())
print(json.dumps(answers))
"""


def answers(trained: Workplace, model: str, env: dict[str, str]) -> list[list[int]]:
    """Load a model in a new process and return its answers to prompts of the run."""
    lines = (trained.run_folder() / "eval" / "tuned" / "summarisation.jsonl").read_text().splitlines()
    prompts = json.dumps([json.loads(line)["prompt"] for line in lines])
    done = trained.python("-c", ASK, model, prompts, env=env)
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_pushed_broken_off_gone_on_and_loaded_back(trained: Workplace, hub: Hub, tmp_path: Path) -> None:
    hub.tokens.add(TOKEN)
    env = hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN}
    command = ["export", f"run={trained.run_folder()}", "format=merged_16bit", "push_to=tester/tuned"]
    repository = hub.root / "models" / "tester" / "tuned"

    hub.uploads.stall = 1
    arguments = [sys.executable, "-m", "tometune.export", *command[1:]]
    broken = subprocess.Popen(
        arguments, env={**trained.env, **env}, cwd=trained.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert hub.uploads.stalled.wait(240)
    broken.kill()
    broken.wait()
    assert list(repository.iterdir()) == []  # all files or none
    assert hub.uploads.received == []

    done = trained.verb(*command, env=env)
    assert done.returncode == 0, done.stderr
    assert "found, its gate passed" in done.stderr
    assert f"{hub.url}/tester/tuned" in done.stdout
    assert len(hub.uploads.received) == 1
    assert "tester/tuned" in hub.private
    names = {path.name for path in repository.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "README.md", "run.json", "gate.json"} <= names
    assert 'from_pretrained("tester/tuned")' in (repository / "README.md").read_text()

    local = answers(trained, str(trained.run_folder() / "export" / "merged_16bit"), {})
    assert answers(trained, "tester/tuned", hub.env(tmp_path / "other") | {"HF_TOKEN": TOKEN}) == local
    written = [path for path in trained.folder.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_a_token_that_may_not_write(trained: Workplace, hub: Hub, tmp_path: Path) -> None:
    code = "from tometune.exporting.hub import push; push([], 'me/x', True)"
    done = trained.python("-c", code, env=hub.env(tmp_path / "hf") | {"HF_TOKEN": "hf_may_read"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "push_to=me/x: the token may not write there; make one with write access (hf auth login)"
    )


def test_files_of_several_quants_do_not_hide_each_other(tmp_path: Path) -> None:
    for quant in ("q8_0", "q4_k_m"):
        folder = tmp_path / f"gguf-{quant}"
        folder.mkdir()
        for name, text in {"run.json": "{}", "gate.json": quant, "Modelfile": quant, f"m-{quant}.gguf": ""}.items():
            (folder / name).write_text(text)
    found = files_of([tmp_path / "gguf-q8_0", tmp_path / "gguf-q4_k_m"])
    assert sorted(found) == sorted(
        ["run.json", "gate.json", "gate-q4_k_m.json", "Modelfile", "Modelfile-q4_k_m", "m-q8_0.gguf", "m-q4_k_m.gguf"]
    )
    assert found["gate-q4_k_m.json"].samefile(tmp_path / "gguf-q4_k_m" / "gate.json")
