"""Exports take the place of exports alone, and of one that passed only if they passed too; a kill loses none."""

import json
import shutil
from pathlib import Path

import pytest

from tests.whole import Workplace
from tometune.common.errors import UserError
from tometune.exporting import places


def export(folder: Path, word: str, passed: bool, run_id: str = "a") -> dict:
    """Write what stands for an export."""
    folder.mkdir(parents=True)
    gate = {"run_id": run_id, "format": "adapter", "passed": passed}
    (folder / "gate.json").write_text(json.dumps(gate))
    (folder / "weights").write_text(word)
    return gate


def make(target: Path, word: str, passed: bool) -> Path:
    """Make an export as the builder does."""
    with places.new_folder(target) as new:
        new.rmdir()
        return places.settle(new, target, export(new, word, passed))


def test_what_is_no_export_of_the_run_is_left_alone(tmp_path):
    target = tmp_path / "adapter"
    make(target, "first", passed=True)
    make(target, "second", passed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (target / "weights").read_text() == "second"
    (target / "gate.json").unlink()
    with pytest.raises(UserError, match=r"holds no gate.json, so is no export, and would be overwritten"):
        make(target, "third", passed=True)
    assert (target / "weights").read_text() == "second"
    shutil.rmtree(target)
    export(target, "theirs", passed=True, run_id="b")
    with pytest.raises(UserError, match="holds an export of another run, b, and would be overwritten"):
        make(target, "third", passed=True)


def test_one_that_fails_stands_beside_one_that_passed(tmp_path):
    target = tmp_path / "adapter"
    assert make(target, "bad", passed=False) == target
    assert make(target, "good", passed=True) == target
    assert make(target, "bad", passed=False) == tmp_path / "adapter-failed"
    assert (target / "weights").read_text() == "good"
    assert make(target, "better", passed=True) == target
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_while_places_are_changed_loses_nothing(tmp_path, monkeypatch, moment):
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
    places.recover(target)
    assert (target / "weights").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.whole
def test_the_run_s_own_adapter_survives(trained: Workplace, copied: Path, tmp_path: Path):
    own = {path: path.read_bytes() for path in (copied / "adapter").iterdir() if path.is_file()}
    for folder, says in ((copied, "inside the run, beside what training left"), (tmp_path / "x", "would be overwrit")):
        (tmp_path / "x" / "adapter").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "adapter" / "mine").write_text("mine")
        done = trained.verb("export", f"run={copied}", "format=adapter", f"export.folder={folder}")
        assert done.returncode == 2, done.stderr
        assert says in done.stderr.splitlines()[-1]
    assert (tmp_path / "x" / "adapter" / "mine").exists()
    assert {path: path.read_bytes() for path in own} == own
