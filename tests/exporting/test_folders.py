"""Exports replace only exports, and a passing one only if they pass too; a kill loses none; changes are found."""

import json
import shutil
from pathlib import Path

import pytest

from tometune.common.errors import UserError
from tometune.common.files import temporary_path
from tometune.config.model import ModelConfig
from tometune.config.root import Config
from tometune.exporting import folders
from tometune.runs.finished import Finished


def export(folder: Path, word: str, passed: bool, run_id: str = "a") -> dict:
    """Write what stands for an export."""
    folder.mkdir(parents=True)
    gate = {"run_id": run_id, "format": "adapter", "passed": passed}
    (folder / "gate.json").write_text(json.dumps(gate))
    (folder / "weights").write_text(word)
    return gate


def make(target: Path, word: str, passed: bool) -> Path:
    """Make an export as the builder does."""
    folders.recover(target)
    with temporary_path(target, folder=True) as new:
        new.rmdir()
        return folders.move_to(target, new, export(new, word, passed))


def test_only_exports_of_the_run_are_replaced(tmp_path):
    target = tmp_path / "adapter"
    make(target, "second", passed=True)
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


def test_nothing_of_the_run_itself_can_be_replaced(tmp_path):
    run = Finished(tmp_path / "run", {"run_id": "a"}, Config(), ModelConfig(), ModelConfig())
    (run.folder / "adapter").mkdir(parents=True)
    (tmp_path / "x" / "adapter").mkdir(parents=True)
    (tmp_path / "x" / "adapter" / "mine").touch()
    for folder in (run.folder, run.folder / "eval", run.folder / "adapter"):
        with pytest.raises(UserError, match="inside the run, among its own files"):
            folders.check_folders(run, folder, [])
    for folder in (run.folder / "export", run.folder / "export" / "x"):
        folders.check_folders(run, folder, [folder / "adapter"])
    with pytest.raises(UserError, match="would be overwritten"):
        folders.check_folders(run, tmp_path / "x", [tmp_path / "x" / "adapter"])
