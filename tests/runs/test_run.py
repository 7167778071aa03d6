import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.config.root import Config
from tometune.runs.identity import MEANING, plain
from tometune.runs.run import Run, check_writable, read_record
from tometune.runs.stored import run_of_older_version

INPUTS = {"model": "a", "data.base": "b"}


@pytest.fixture
def made(tmp_path: Path) -> Config:
    config = Config()
    config.paths.outputs = str(tmp_path / "outputs")
    return config


@pytest.fixture
def run(made: Config) -> Run:
    return Run.find(made, INPUTS)


def test_a_run_has_an_id_and_a_folder_also_in_a_sweep(made, run, tmp_path):
    assert run.id == f"llama32_3b-mix_100k-s0-{run.config_hash[:8]}"
    assert run.folder == tmp_path / "outputs" / run.id
    check_writable(run.folder, "set paths.outputs to a writable folder")
    assert not (tmp_path / "outputs").exists()
    (tmp_path / "outputs").write_text("")
    with pytest.raises(UserError, match=r"outputs: cannot be written to; set paths\.outputs"):
        check_writable(run.folder, "set paths.outputs to a writable folder")
    made.paths.multirun, made.sweep.name = str(tmp_path / "multirun"), "table"
    assert Run.find(made, INPUTS).folder == tmp_path / "multirun" / "table" / run.id


def test_the_record_follows_its_attempts_to_the_end(made, run, monkeypatch):
    with pytest.raises(KeyboardInterrupt), run.recording(made, {}, {}):
        raise KeyboardInterrupt
    first = read_record(run.folder)
    assert (first["status"], first["attempts"]) == ("running", 1)
    with pytest.raises(SaveError, match="no space left"), run.recording(made, {}, {}):
        Path("/dev/full").write_text("x")
    failed = read_record(run.folder)
    assert failed["status"] == "failed"
    assert failed["error"].startswith(f"SaveError: {run.folder}: no space left")
    with pytest.raises(SaveError, match="no space left"), run.recording(made, {}, {}):  # noqa: PT012
        run.record["train"] = {"steps": 1}
        run.save()
        monkeypatch.setattr("tometune.common.files.write_text", lambda path, text: Path("/dev/full").write_text(text))
        Path("/dev/full").write_text("x")
    monkeypatch.undo()
    assert read_record(run.folder)["status"] == "running", "too full for the record, too"

    again = Run.find(made, INPUTS)
    with again.recording(made, {"data": {"rows": 3}}, {"rows": ["a"]}):
        again.add_scores("base", {"rougeL": 0.5})
    record = read_record(run.folder)
    assert (record["status"], record["attempts"], record["train"]) == ("completed", 4, {"steps": 1})
    assert "error" not in record
    assert (record["started"], record["eval"]) == (first["started"], {"base": {"rougeL": 0.5}})
    assert Run.find(made, INPUTS).completed
    assert json.loads((run.folder / "mix.json").read_text()) == {"rows": ["a"]}


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is broken"), ("[]", "is not a record"), ('{"schema": 99}', "schema 1")]
)
def test_a_broken_record_is_an_error_of_one_line(tmp_path, text, says):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_record(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_of_an_older_version_is_found_by_its_settings(made, run):
    older = run.folder.with_name(f"{run.id[:-8]}00000000")
    older.mkdir(parents=True)
    (older / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(made))))
    (older / "run.json").write_text('{"schema": 1}')
    assert run_of_older_version(made, run.id) == older
    assert run_of_older_version(replace(made, trainer=replace(made.trainer, learning_rate=1e-9)), run.id) is None
    (older / "run.json").write_text(json.dumps({"schema": 1, "meaning": MEANING}))  # same version, other inputs
    assert run_of_older_version(made, run.id) is None
