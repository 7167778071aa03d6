"""Exports replace only exports, and a passing one only if they pass too; a kill loses none; changes are found."""

import json
import shutil
from pathlib import Path

import pytest

from tests.whole import Workplace
from tometune.common.errors import UserError
from tometune.exporting import folders


def export(folder: Path, word: str, passed: bool, run_id: str = "a") -> dict:
    """Write what stands for an export."""
    folder.mkdir(parents=True)
    gate = {"run_id": run_id, "format": "adapter", "passed": passed}
    (folder / "gate.json").write_text(json.dumps(gate))
    (folder / "weights").write_text(word)
    return gate


def make(target: Path, word: str, passed: bool) -> Path:
    """Make an export as the builder does."""
    with folders.new_folder(target) as new:
        new.rmdir()
        return folders.move_to(target, new, export(new, word, passed))


def test_only_exports_of_the_run_are_replaced(tmp_path):
    target = tmp_path / "adapter"
    make(target, "first", passed=True)
    make(target, "second", passed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (target / "weights").read_text() == "second"
    (target / "gate.json").unlink()
    with pytest.raises(UserError, match=r"is not an export \(no gate.json\), and would be overwritten"):
        make(target, "third", passed=True)
    assert (target / "weights").read_text() == "second"
    shutil.rmtree(target)
    export(target, "theirs", passed=True, run_id="b")
    with pytest.raises(UserError, match="holds an export of another run, b, and would be overwritten"):
        make(target, "third", passed=True)


def test_a_failed_export_does_not_replace_a_passing_one(tmp_path):
    target = tmp_path / "adapter"
    assert make(target, "bad", passed=False) == target
    assert make(target, "good", passed=True) == target
    assert make(target, "bad", passed=False) == tmp_path / "adapter-failed"
    assert (target / "weights").read_text() == "good"
    assert make(target, "better", passed=True) == target
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_while_folders_are_renamed_loses_nothing(tmp_path, monkeypatch, moment):
    target, calls, replace = tmp_path / "adapter", [], Path.replace
    make(target, "good", passed=True)

    def killed(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return replace(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make(target, "new", passed=True)
    folders.recover(target)
    assert (target / "weights").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_every_change_of_an_export_is_found(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "run.json"):
        (tmp_path / name).write_text(name)
    gate = {"files": folders.listing(tmp_path)}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    assert folders.changed(tmp_path, gate) == []
    (tmp_path / "model.safetensors").write_text("MODEL.safetensors")  # of the same size
    assert folders.changed(tmp_path, gate) == ["model.safetensors"]
    (tmp_path / "more").write_text("")
    (tmp_path / "run.json").unlink()
    assert folders.changed(tmp_path, gate) == ["more", "run.json"]


@pytest.mark.whole
def test_the_run_s_own_adapter_survives(trained: Workplace, copied: Path, tmp_path: Path):
    own = {path: path.read_bytes() for path in (copied / "adapter").iterdir() if path.is_file()}
    for folder, says in ((copied, "inside the run, among its own files"), (tmp_path / "x", "would be overwrit")):
        (tmp_path / "x" / "adapter").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "adapter" / "mine").write_text("mine")
        done = trained.verb("export", f"run={copied}", "format=adapter", f"export.folder={folder}")
        assert done.returncode == 2, done.stderr
        assert says in done.stderr.splitlines()[-1]
    assert (tmp_path / "x" / "adapter" / "mine").exists()
    assert {path: path.read_bytes() for path in own} == own
