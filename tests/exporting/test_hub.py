"""Publishing to a hub on localhost: an upload is interrupted, resumed, and the model loaded back by its id."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub import Hub
from tests.whole import Workplace
from tometune.exporting.hub import files_of

TOKEN = "hf_may_write"
ASK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("What is a list?", return_tensors="pt").input_ids
print(model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist())
"""
CHECKS = """
import json, os, sys
from tometune.common.errors import UserError
from tometune.exporting.hub import check_repository
for token, repository, private in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        check_repository(repository, private)
        print("allowed")
    except UserError as error:
        print(error)
"""
PUSH = """
import sys
from pathlib import Path
from tometune.exporting.hub import push
folder = Path(sys.argv[1])
push([folder / "a", folder / "b", folder / "c"], folder / "README.md", "tester/several", True)
"""


@pytest.mark.whole
def test_a_pushed_model_is_loaded_back_by_its_id(trained: Workplace, exported: Path, hub: Hub, tmp_path: Path) -> None:
    hub.tokens.add(TOKEN)
    env = hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN}
    run = f"run={trained.run_folder()}"
    done = trained.verb("export", run, "format=merged_16bit", "push_to=tester/tuned", env=env)
    assert done.returncode == 0, done.stderr
    assert "exists and passed its checks" in done.stderr
    assert f"{hub.url}/tester/tuned" in done.stdout
    assert hub.private == {"tester/tuned"}
    repository, merged = hub.root / "models" / "tester" / "tuned", exported / "merged_16bit"
    assert {path.name for path in repository.iterdir()} == {path.name for path in merged.iterdir()}
    assert 'from_pretrained("tester/tuned")' in (repository / "README.md").read_text()
    loaded = trained.python("-c", ASK, "tester/tuned", env=hub.env(tmp_path / "other") | {"HF_TOKEN": TOKEN})
    assert loaded.returncode == 0, loaded.stderr
    model, tokenizer = (kind.from_pretrained(merged) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("What is a list?", return_tensors="pt").input_ids
    assert json.loads(loaded.stdout) == model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()
    written = [path for path in trained.folder.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_what_may_be_pushed_is_checked_before_anything_is_made(place: Workplace, hub: Hub, tmp_path: Path) -> None:
    hub.tokens.add(TOKEN)
    hub.add_model("tester/seen")
    write = "may not write there; make one with write access"
    cases = {
        ("hf_may_read", "tester/x", True): f"push_to=tester/x: the token {write}",
        (TOKEN, "somebody/x", True): f"push_to=somebody/x: the token of tester {write}",
        (TOKEN, "tester/seen", True): "push_to=tester/seen: exists and is public, so everybody would see this model",
        (TOKEN, "tester/seen", False): "allowed",
        (TOKEN, "tester/new", True): "allowed",
    }
    done = place.python("-c", CHECKS, json.dumps(list(cases)), env=hub.env(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), cases.values(), strict=True):
        assert line.startswith(expected)
    assert hub.private == {"tester/new"}


def test_an_interrupted_upload_sends_only_the_other_files_again(place: Workplace, hub: Hub, tmp_path: Path) -> None:
    hub.tokens.add(TOKEN)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.gguf").write_bytes(name.encode() * 300_000)
    (tmp_path / "README.md").write_text("# Several")
    repository, env = hub.root / "models" / "tester" / "several", {**hub.env(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    hub.uploads.stall = 2
    command = ("-c", PUSH, str(tmp_path))
    broken = subprocess.Popen([sys.executable, *command], env={**place.env, **env}, cwd=place.folder)
    assert hub.uploads.stalled.wait(60)
    deadline = time.monotonic() + 30
    while len(hub.uploads.received) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    broken.kill()
    broken.wait()
    assert len(hub.uploads.received) == 2
    assert list(repository.iterdir()) == []  # all files or none
    done = place.python(*command, env=env)
    assert done.returncode == 0, done.stderr
    assert len(set(hub.uploads.received)) == len(hub.uploads.received) == 3
    found = {path.name: path.read_bytes() for path in repository.iterdir()}
    assert found == {"README.md": b"# Several", **{f"{n}.gguf": n.encode() * 300_000 for n in "abc"}}


def test_files_of_several_quants_do_not_hide_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / "gguf-q8_0", tmp_path / "gguf-q4_k_m"]
    for folder in folders:
        folder.mkdir()
        own = folder.name
        for name, text in {"run.json": "{}", "gate.json": own, "Modelfile": own, f"{own}.gguf": ""}.items():
            (folder / name).write_text(text)
    found = files_of(folders)
    several = {"gate.json", "gate-q4_k_m.json", "Modelfile", "Modelfile-q4_k_m", "gguf-q8_0.gguf", "gguf-q4_k_m.gguf"}
    assert set(found) == {"run.json", *several}
    assert found["gate-q4_k_m.json"].samefile(folders[1] / "gate.json")
