"""Exports replace only exports, and a passing one only if they pass too; every changed file is found."""

import json
import shutil
from pathlib import Path

import pytest

from tometune.common.errors import UserError
from tometune.common.files import temporary_path
from tometune.config.model import ModelConfig
from tometune.config.root import Config
from tometune.exporting import build
from tometune.exporting.build import changed_files, check_folders, check_space, list_files, move_to
from tometune.exporting.formats import exports_of
from tometune.runs.finished import Finished


def make(target: Path, word: str, passed: bool, run_id: str = "a") -> Path:
    """Make what stands for an export as the builder does."""
    with temporary_path(target, folder=True) as new:
        gate = {"run_id": run_id, "format": "adapter", "passed": passed}
        (new / "gate.json").write_text(json.dumps(gate))
        (new / "weights").write_text(word)
        return move_to(target, new, gate)


def test_only_exports_of_the_run_are_replaced(tmp_path):
    target = make(tmp_path / "adapter", "theirs", passed=True, run_id="b")
    with pytest.raises(UserError, match="holds an export of another run, b, and would be overwritten"):
        make(target, "third", passed=True)
    (target / "gate.json").unlink()
    with pytest.raises(UserError, match=r"is not an export \(no gate.json\), and would be overwritten"):
        make(target, "third", passed=True)
    assert (target / "weights").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_export_does_not_replace_a_passing_one(tmp_path):
    target = tmp_path / "adapter"
    assert make(target, "bad", passed=False) == target
    assert make(target, "good", passed=True) == target
    assert make(target, "bad", passed=False) == tmp_path / "adapter-failed"
    assert (target / "weights").read_text() == "good"
    assert make(target, "better", passed=True) == target
    assert (target / "weights").read_text() == "better"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_old_export_is_deleted_after_the_new_one_has_its_name(tmp_path, monkeypatch):
    target = make(tmp_path / "adapter", "good", passed=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    make(target, "new", passed=True)
    assert (target / "weights").read_text() == "new"
    assert [path.read_text() for path in tmp_path.glob(".adapter.*/weights")] == ["good"]


def test_every_change_of_an_export_is_found(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "run.json"):
        (tmp_path / name).write_text(name)
    gate = {"files": list_files(tmp_path)}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    assert changed_files(tmp_path, gate) == []
    (tmp_path / "model.safetensors").write_text("MODEL.safetensors")  # of the same size
    (tmp_path / "more").write_text("")
    (tmp_path / "run.json").unlink()
    assert changed_files(tmp_path, gate) == ["model.safetensors", "more", "run.json"]


def test_nothing_of_the_run_itself_can_be_replaced(tmp_path):
    run = Finished(tmp_path / "run", {"run_id": "a"}, Config(), ModelConfig(), ModelConfig())
    (run.folder / "adapter").mkdir(parents=True)
    for folder in (run.folder, run.folder / "eval", run.folder / "adapter"):
        with pytest.raises(UserError, match="inside the run, among its own files"):
            check_folders(run, folder, [])
    for folder in (run.folder / "export", run.folder / "export" / "x"):
        check_folders(run, folder, exports_of(["adapter"], [], folder))
    (tmp_path / "adapter-failed").mkdir()
    (tmp_path / "adapter-failed" / "mine").touch()
    with pytest.raises(UserError, match="adapter-failed: is not an export"):
        check_folders(run, tmp_path, exports_of(["adapter"], [], tmp_path))


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    large = Finished(tmp_path, {"model": {"parameters": 3_210_000_000}}, Config(), ModelConfig(), ModelConfig())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(30e9, 29e9, 1e9))
    exports = exports_of(["adapter", "gguf"], ["q8_0"], tmp_path / "export")
    with pytest.raises(UserError, match=r"the exports need about 18\.\d GB, 1\.0 GB are free; free space, or set"):
        check_space(large, tmp_path / "export", exports)
    monkeypatch.setattr(build.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"not writable; set export.folder to a folder that is"):
        check_space(large, tmp_path / "export", [])
