"""What `export` refuses, each in one line, before anything is made."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.whole import assert_one_line
from tometune.common.errors import UserError
from tometune.config.model import ModelConfig
from tometune.config.root import Config, PathsConfig
from tometune.exporting import folders
from tometune.runs.finished import Finished, find_finished


def find(run: Path, tmp_path: Path, **settings: object):
    """Find a run as the verb does."""
    return find_finished(Config(run=str(run), paths=PathsConfig(cache=str(tmp_path)), **settings))


def change(path: Path, **values: object) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.whole
def test_runs_that_cannot_be_exported(copied, trained, tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*name a run folder"):
        find(tmp_path / "nothing", tmp_path)
    change(copied / "run.json", status="running")
    with pytest.raises(UserError, match=r"not finished \(status running\); repeat the command that made this run"):
        find(copied, tmp_path)


@pytest.mark.whole
def test_a_base_that_is_gone_or_another_one(copied, trained, tmp_path):
    base = trained.folder / "base"
    moved = base.rename(trained.folder / "moved")
    try:
        with pytest.raises(UserError, match=r"model.id=.*base: the base of this run is gone"):
            find(copied, tmp_path)
        shutil.copytree(trained.folder / "other", base)
        with pytest.raises(UserError, match="not the base that this run was trained on"):
            find(copied, tmp_path)
        shutil.rmtree(base)
    finally:
        moved.rename(base)
    config = base / "config.json"
    before = config.read_text()
    assert find(copied, tmp_path).model.id == str(base)
    try:
        change(config, quantization_config={"load_in_4bit": True})
        record = json.loads((copied / "run.json").read_text())
        from tometune.models.source import fingerprint

        record["model"]["revision"] = fingerprint(find_model(copied))
        (copied / "run.json").write_text(json.dumps(record))
        with pytest.raises(
            UserError, match=r"^export.base: missing; .* is stored in 4 bits, so name the same model in 16"
        ):
            find(copied, tmp_path)
    finally:
        config.write_text(before)


def find_model(run: Path):
    """Return the model group of a run's config."""
    from tometune.runs.stored import stored_config

    return stored_config(run).model


@pytest.mark.whole
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((), r"^run: missing; name a finished run"),
        (("run=RUN", "format=ggml"), r"^format=ggml: one of adapter, merged_16bit, gguf"),
        (("run=RUN", "quant=[q8_0,q4]"), r"^quant=q4: one of f16"),
        (("run=RUN", "push_to=name"), r"^push_to=name: not the id of a repository; write push_to=user/name"),
        (("run=RUN", "format=gguf", "push_to=user/name"), r"^push_to: needs a token with write access; set HF_TOKEN"),
        (
            ("run=RUN", "push_to=user/name", "format=adapter"),
            r"base is a folder on this machine .* nobody else can load",
        ),
        (("run=RUN", "lora.r=4"), r"^lora.r=4: the run has its own; leave it out"),
        (("run=RUN", "export.folder=FILE/x"), r"FILE is a file|is a file; give another folder"),
        (("run=RUN", "export.base=nobody/nothing"), r"^export.base=nobody/nothing: the model hub cannot be reached"),
    ],
)
def test_one_line_each(trained, overrides, says):
    (trained.folder / "FILE").write_text("")
    run = str(trained.run_folder())
    before = sorted(trained.run_folder().rglob("*"))
    done = trained.verb("export", *(text.replace("RUN", run) for text in overrides))
    assert done.returncode == 2, done.stderr
    assert_one_line(done, says)
    assert sorted(trained.run_folder().rglob("*")) == before


@pytest.fixture
def large(tmp_path: Path) -> Finished:
    """A run of a model with 3.2 billion parameters."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("")
    record = {"model": {"parameters": 3_210_000_000}}
    return Finished(tmp_path, record, Config(), ModelConfig(), ModelConfig())


def test_a_full_disk(large, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(30e9, 29e9, 1e9))
    exports = [("adapter", None), ("merged_16bit", None), ("gguf", "q8_0")]
    with pytest.raises(UserError, match=r"the exports need about 18\.\d GB, 1\.0 GB are free; free some space, or set"):
        folders.check_space(large, tmp_path / "export", exports)


def test_a_folder_that_cannot_be_written(large, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"not writable; set export.folder to a folder that is"):
        folders.check_space(large, tmp_path / "export", [])


@pytest.mark.whole
def test_without_the_extra_the_merged_model_is_kept_and_the_command_named(copied, tmp_path, monkeypatch):
    from tometune import export
    from tometune.config.export import ExportConfig
    from tometune.exporting import gguf

    limits = {"max_divergence": {"merged_16bit": 0.01}, "max_rouge_change": {"merged_16bit": 0.05}}
    config = Config(
        run=str(copied),
        format="gguf",
        paths=PathsConfig(cache=str(tmp_path)),
        export=ExportConfig(examples=2, **limits),
    )
    monkeypatch.setattr(gguf, "missing", lambda: ["cyllama"])
    with pytest.raises(UserError, match=r'format=gguf: needs cyllama; run: pip install "cyllama>=.*" and the same'):
        export.main.__wrapped__(config)
    assert (copied / "export" / "merged_16bit" / "model.safetensors").exists()
    assert not list((copied / "export").glob("gguf*"))


def test_the_command_that_is_named_installs_the_extra():
    """tometune itself is on no package index."""
    from tometune.exporting import gguf

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["gguf"]
    assert shlex.split(gguf.INSTALL) == ["pip", "install", *extra]
