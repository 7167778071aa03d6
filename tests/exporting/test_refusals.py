"""What `export` refuses, each in one line, before anything is made."""

import json
import shutil
from pathlib import Path

import pytest

from tests.exporting.conftest import LIMITS
from tests.whole import assert_one_line
from tometune import export
from tometune.common.errors import UserError
from tometune.config.export import ExportConfig, export_problems
from tometune.config.root import Config, PathsConfig
from tometune.exporting import gguf
from tometune.models.source import fingerprint
from tometune.runs.finished import find_finished
from tometune.runs.stored import stored_config


def find(run: Path, tmp_path: Path, **settings: object):
    """Find a run as the verb does."""
    return find_finished(Config(run=str(run), paths=PathsConfig(cache=str(tmp_path)), **settings))


def change(path: Path, **values: object) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.whole
def test_a_base_that_is_gone_or_another_one(copied, trained, tmp_path):
    base = Path(shutil.copytree(trained.folder / "base", tmp_path / "base"))
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace(str(trained.folder / "base"), str(base)))
    assert find(copied, tmp_path).model.id == str(base)
    change(base / "config.json", quantization_config={"load_in_4bit": True})
    with pytest.raises(UserError, match="not the base that this run was trained on"):
        find(copied, tmp_path)
    record = json.loads((copied / "run.json").read_text())
    change(copied / "run.json", model=record["model"] | {"revision": fingerprint(stored_config(copied).model)})
    with pytest.raises(UserError, match=r"^export.base: missing; .* is stored in 4 bits, so name the same model in 16"):
        find(copied, tmp_path)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"model.id=.*base: the base of this run is gone"):
        find(copied, tmp_path)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"formats": "ggml"}, "format=ggml: one of adapter, merged_16bit, gguf"),
        ({"quants": ["q8_0", "q4"]}, "quant=q4: one of f16"),
        ({"formats": []}, "format: empty; name one or more of adapter"),
        ({"push_to": "name"}, "push_to=name: not the id of a repository; write push_to=user/name"),
        ({"config": ExportConfig(folder=f"{__file__}/x")}, f"export.folder={__file__}/x: {__file__} is a file; give"),
        ({"config": ExportConfig(min_share=-1)}, "export.min_share=-1: not 0 or more"),
        ({"config": ExportConfig(max_divergence={"q4": 1})}, "export.max_divergence=q4: one of adapter"),
    ],
)
def test_wrong_settings(given, line):
    settings = {"formats": "gguf", "quants": "q8_0", "push_to": None, "config": ExportConfig()} | given
    assert next(export_problems(**settings)).startswith(line)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"run": None}, r"^run: missing; name a finished run"),
        ({"push_to": "user/name", "format": "gguf"}, r"^push_to: needs a token with write access; set HF_TOKEN"),
        ({"push_to": "user/name", "format": "adapter"}, r"base is a folder on this machine .* nobody else can load"),
    ],
)
def test_what_cannot_be_done(trained, tmp_path, monkeypatch, settings, says):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    paths = PathsConfig(cache=str(tmp_path))
    with pytest.raises(UserError, match=says):
        export.main.__wrapped__(Config(**{"run": str(trained.run_folder()), "paths": paths} | settings))


@pytest.mark.whole
def test_nothing_is_written_without_the_hub(trained):
    before = sorted(trained.run_folder().rglob("*"))
    done = trained.verb("export", f"run={trained.run_folder()}", "export.base=nobody/nothing")
    assert done.returncode == 2, done.stderr
    assert_one_line(done, r"^export.base=nobody/nothing: the model hub cannot be reached")
    assert sorted(trained.run_folder().rglob("*")) == before


@pytest.mark.whole
def test_without_the_extra_the_merged_model_is_kept_and_the_command_named(copied, exported, tmp_path, monkeypatch):
    shutil.copytree(exported / "merged_16bit", copied / "export" / "merged_16bit")
    config = Config(run=str(copied), format="gguf", paths=PathsConfig(cache=str(tmp_path)), export=LIMITS)
    monkeypatch.setattr(gguf, "missing", lambda: ["cyllama"])
    with pytest.raises(UserError, match=r'format=gguf: needs cyllama; run: pip install "cyllama>=.*" and the same'):
        export.main.__wrapped__(config)
    assert (copied / "export" / "merged_16bit" / "model.safetensors").exists()
    assert not list((copied / "export").glob("gguf*"))
