"""The config of a run that another version wrote stays readable."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.config.root import PathsConfig
from tometune.config.trainer import TrainerConfig
from tometune.runs import stored
from tometune.runs.run import read_record
from tometune.runs.stored import run_folder, stored_config

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"
"""config.yaml and run.json of a LoRA run on `model=tiny`, as f115d2b wrote them."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stored._warned.clear()
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


def change(run: Path, **values: object) -> None:
    """Set dotted keys of a run's config, new ones too; `None` removes a key."""
    config = OmegaConf.load(run / "config.yaml")
    for key, value in values.items():
        group, _, last = key.replace("__", ".").rpartition(".")
        if value is None:
            (OmegaConf.select(config, group) if group else config).pop(last)
        else:
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))


def test_a_run_of_f115d2b_is_readable_and_what_it_lacks_takes_its_default(run):
    config = stored_config(run)
    assert (config.model.name, config.data.rows, config.trainer.max_steps) == ("tiny", 64, 6)
    assert config.eval.tasks["summarisation"].max_new_tokens == 8
    assert read_record(run)["run_id"] == "tiny-pydocs_64-s0-aa812808"
    change(run, chat=None, trainer=None, model__attn_implementation=None, eval__engine="vllm")
    config = stored_config(run)
    assert config.trainer == TrainerConfig()
    assert config.model.attn_implementation == "sdpa"
    assert config.eval.engine == "auto", "an engine that was removed"


def test_unknown_keys_at_any_depth_are_one_warning(run, caplog):
    added = {
        "plugin": {"a": {"b": 1}},
        "trainer__warp": 9,
        "data__base__flavour": "x",
        "data__filters__old": {"c": [1]},
        "data__pool": {"kind": "files", "path": "more.jsonl", "age": 3},
        "eval__tasks__summarisation__vintage": 1,
        "export__max_divergence__q2_k": 1.0,  # a table of numbers by name: any name may stand there
    }
    change(run, **added)
    with caplog.at_level(logging.WARNING):
        config = stored_config(run)
        stored_config(run)
    assert config.trainer.max_steps == 6
    assert config.data.pool.path == "more.jsonl"
    assert config.export.max_divergence["q2_k"] == 1.0
    (warning,) = [entry.message for entry in caplog.records if entry.name == "tometune.runs.stored"]
    unknown = "plugin trainer.warp data.base.flavour data.filters.old data.pool.age eval.tasks.summarisation.vintage"
    assert [key for key in unknown.split() if key not in warning] == []
    assert "q2_k" not in warning


def test_latest_is_the_run_that_was_finished_last(run, tmp_path):
    paths = PathsConfig(outputs=str(tmp_path), multirun=str(tmp_path / "multirun"))
    with pytest.raises(UserError, match=r"against=latest: no run is finished in .*; make one with tometune train"):
        run_folder("latest", replace(paths, outputs=str(tmp_path / "none")), "against")
    sweep = Path(shutil.copytree(run, tmp_path / "multirun" / "table" / "later"))
    times = {run: "2026-01-02T00:00:00+00:00", sweep: "2026-01-03T00:00:00+00:00"}
    for folder, finished in times.items():
        write_json(folder / "run.json", read_record(folder) | {"finished": finished})
    assert run_folder("latest", paths) == sweep
    write_json(sweep / "run.json", read_record(sweep) | {"status": "running", "finished": None})
    assert run_folder("latest", paths) == run


@pytest.mark.parametrize("text", ["[1, 2]", "trainer: {max_steps: many}", "trainer: {", "\xff"])
def test_a_broken_config_is_one_line(run, text):
    (run / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read as a config \(") as error:
        stored_config(run)
    assert "\n" not in str(error.value)
