"""What `export` refuses, each in one line, before anything is made. Exports replace only exports of their run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.exporting.conftest import LIMITS
from tests.whole import assert_one_line
from tometune import export
from tometune.common.errors import UserError
from tometune.common.files import temporary_path
from tometune.config.export import ExportConfig, export_problems
from tometune.config.model import ModelConfig
from tometune.config.root import Config, PathsConfig
from tometune.config.validators import value_problems
from tometune.exporting import gguf
from tometune.exporting.build import check_folders, list_files, move_to
from tometune.exporting.formats import exports_of
from tometune.models.source import fingerprint
from tometune.runs.finished import Finished, find_finished
from tometune.runs.stored import stored_config


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.whole
def test_a_base_that_is_gone_or_another_one(copied, trained, tmp_path):
    config = Config(run=str(copied), paths=PathsConfig(cache=str(tmp_path)))
    base = Path(shutil.copytree(trained.folder / "base", tmp_path / "base"))
    stored = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(stored.replace(str(trained.folder / "base"), str(base)))
    assert find_finished(config).model.id == str(base)
    change(base / "config.json", quantization_config={"load_in_4bit": True})
    with pytest.raises(UserError, match="not the base that this run was trained on"):
        find_finished(config)
    record = json.loads((copied / "run.json").read_text())
    change(copied / "run.json", model=record["model"] | {"revision": fingerprint(stored_config(copied).model)})
    with pytest.raises(UserError, match=r"^export.base: missing; .* is stored in 4 bits, so name the same model in 16"):
        find_finished(config)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"model.id=.*base: the base of this run is gone"):
        find_finished(config)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"formats": []}, "format: empty; name one or more of adapter"),
        ({"config": ExportConfig(folder=f"{__file__}/x")}, f"export.folder={__file__}/x: {__file__} is a file; give"),
        ({"config": ExportConfig(min_share=-1)}, "export.min_share=-1: not 0 or more"),
        ({"config": ExportConfig(max_divergence={"q4": 1})}, "export.max_divergence=q4: one of adapter"),
    ],
)
def test_wrong_settings(given, line):
    settings = {"formats": "gguf", "quants": "q8_0", "push_to": None, "config": ExportConfig()} | given
    problems = [*export_problems(**settings), *value_problems("export", settings["config"])]
    assert problems[0].startswith(line)


@pytest.mark.whole
def test_what_cannot_be_done(trained, copied, exported, tmp_path, monkeypatch):
    shutil.copytree(exported / "merged_16bit", copied / "export" / "merged_16bit")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(gguf, "missing", lambda: ["cyllama"])
    for settings, says in (
        ({"push_to": "user/name", "format": "gguf"}, r"^push_to: needs a token with write access; set HF_TOKEN"),
        ({"push_to": "user/name", "format": "adapter"}, r"base is a folder on this machine .* nobody else can load"),
        ({"format": "gguf"}, r'format=gguf: needs cyllama; run: pip install "cyllama>=.*" and the same'),
    ):
        common = {"run": str(copied), "paths": PathsConfig(cache=str(tmp_path)), "export": LIMITS}
        with pytest.raises(UserError, match=says):
            export.main.__wrapped__(Config(**common | settings))
    assert [path.name for path in (copied / "export").iterdir()] == ["merged_16bit"], "nothing is made"

    before = sorted(trained.run_folder().rglob("*"))
    done = trained.verb("export", f"run={trained.run_folder()}", "export.base=nobody/nothing")
    assert done.returncode == 2, done.stderr
    assert_one_line(done, r"^export.base=nobody/nothing: the model hub cannot be reached")
    assert sorted(trained.run_folder().rglob("*")) == before


def make(target: Path, word: str, passed: bool, run_id: str = "a") -> Path:
    """Make what stands for an export as the builder does."""
    with temporary_path(target, folder=True) as new:
        (new / "weights").write_text(word)
        gate = {"run_id": run_id, "format": "adapter", "passed": passed, "files": list_files(new)}
        (new / "gate.json").write_text(json.dumps(gate))
        return move_to(target, new, gate)


def test_files_in_subfolders_are_listed(tmp_path):
    """transformers writes all chat templates but one into a subfolder."""
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("gate.json", "config.json", "additional_chat_templates/tool_use.jinja"):
        (tmp_path / name).write_text(name)
    before = list_files(tmp_path)
    assert list(before) == ["additional_chat_templates/tool_use.jinja", "config.json"]
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("another")
    assert list_files(tmp_path) != before


def test_only_exports_of_the_run_are_replaced(tmp_path):
    target = make(tmp_path / "adapter", "theirs", passed=True, run_id="b")
    with pytest.raises(UserError, match="holds an export of another run, b, and would be overwritten"):
        make(target, "third", passed=True)
    (target / "gate.json").unlink()
    with pytest.raises(UserError, match=r"is not an export \(no gate.json\), and would be overwritten"):
        make(target, "third", passed=True)
    assert (target / "weights").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_export_does_not_replace_a_passing_one_which_is_deleted_last(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    assert make(target, "bad", passed=False) == target
    assert make(target, "good", passed=True) == target
    assert make(target, "bad", passed=False) == tmp_path / "adapter-failed"
    assert (target / "weights").read_text() == "good"
    assert make(target, "better", passed=True) == target
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    make(target, "new", passed=True)
    assert (target / "weights").read_text() == "new"
    assert [path.read_text() for path in tmp_path.glob(".adapter.*/weights")] == ["better"]


def test_nothing_of_the_run_itself_can_be_replaced(tmp_path, monkeypatch):
    run = Finished(tmp_path / "run", {"run_id": "a"}, Config(), ModelConfig(), ModelConfig())
    (run.folder / "adapter").mkdir(parents=True)
    for folder in (run.folder, run.folder / "eval", run.folder / "adapter"):
        with pytest.raises(UserError, match="inside the run, among its own files"):
            check_folders(run, folder, [])
    check_folders(run, run.folder / "export", exports_of(["adapter"], [], run.folder / "export"))
    (tmp_path / "adapter-failed").mkdir()
    (tmp_path / "adapter-failed" / "mine").touch()
    with pytest.raises(UserError, match="adapter-failed: is not an export"):
        check_folders(run, tmp_path, exports_of(["adapter"], [], tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"cannot be written to; set export.folder to a folder that can"):
        check_folders(run, tmp_path, [])
