import json

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.common.errors import UserError
from tometune.reporting.sweep import read_sweep
from tometune.runs.sweep_file import SCHEMA, Cell


def cell(run_id, data="x", seed=0, overrides=(), **problem):
    return Cell(run_id, list(overrides), "tiny", data, 10, seed, **problem)


def list_cells(folder, *cells):
    content = {"schema": SCHEMA, "cells": [entry.listed() for entry in cells]}
    (folder / "sweep.json").write_text(json.dumps(content))


def test_runs_have_their_settings_and_seeds_and_other_folders_are_no_runs(sweep):
    write_table(sweep / "wandb" / "inner", seeds=1)
    found = read_sweep(sweep)
    assert (len(found.runs), found.missing, found.notes) == (9, [], [])
    run = found.runs[-1]
    assert (run.model, run.data, run.rows) == ("tiny", "pydocs_3k", 3000)
    assert run.streams == {"data": 2, "order": 2, "adapter": 2, "generation": 2}
    assert (run.settings["trainer.learning_rate"], run.settings["model.revision"]) == (2e-4, "1")
    assert not any(key.startswith(("seeds", "tracking", "paths")) for key in run.settings)


def test_runs_that_are_not_completed_are_missing_with_a_reason(sweep):
    folders = sorted(sweep.iterdir())
    (folders[0] / "run.json").write_text('{"schema": 1, "status": "comp')
    edit(folders[1], status="failed", error="OutOfMemoryError: CUDA out of memory")
    edit(folders[2], status="running")
    (folders[3] / "run.json").unlink()
    edit(folders[4], eval={"base": {}})
    found = read_sweep(sweep)
    assert len(found.runs) == 4
    broken, *reasons = (cell.reason for cell in found.missing)
    assert broken.startswith("run.json is broken or truncated (Unterminated string ")
    assert broken.endswith("; repeat the command that made this run (python -m tometune.train …)")
    assert reasons == [
        "failed: OutOfMemoryError: CUDA out of memory",
        "running or interrupted",
        "interrupted before run.json was written",
        "completed without scores",
    ]
    first = found.missing[0]
    assert (first.run_id, first.model, first.data, first.seed) == (folders[0].name, "tiny", "pydocs_1k", 0)


def test_cells_of_sweep_json_without_a_run_are_missing(sweep):
    there = sorted(path.name for path in sweep.iterdir())
    absent = cell("tiny-pydocs_9k-s4-0", "pydocs_9k", 4, ["data=pydocs_9k", "seed=4", "+sweep=table"])
    # A wrong config has no run id: such a cell goes by what makes it differ.
    wrong = cell(None, "x", 3, ["hydra/launcher=processes", "lora.r=0"], error="lora.r=0: no")
    list_cells(sweep, *(cell(name) for name in there[:-1]), absent, wrong)
    found = read_sweep(sweep)
    assert [(cell.run_id, cell.model, cell.data, cell.seed, cell.reason) for cell in found.missing] == [
        ("hydra/launcher=processes lora.r=0", "tiny", "x", 3, "failed: lora.r=0: no"),
        ("tiny-pydocs_9k-s4-0", "tiny", "pydocs_9k", 4, "not started"),
    ]
    assert found.notes == [f"Not listed in sweep.json but included: {there[-1]}."]


def test_other_schema_versions_are_rejected(sweep):
    odd = sorted(sweep.iterdir())[3]
    edit(odd, schema=2)
    with pytest.raises(UserError, match=rf"another version.*: {odd.name} \(schema 2\); move"):
        read_sweep(sweep)


def test_a_folder_without_completed_runs_is_rejected(tmp_path):
    (tmp_path / "table").mkdir()
    with pytest.raises(UserError, match="zzz: no such sweep folder; sweeps found: table"):
        read_sweep(tmp_path / "zzz")
    with pytest.raises(UserError, match="table: holds no runs; make some"):
        read_sweep(tmp_path / "table")
    edit(write_run(tmp_path / "table"), status="failed", error="no")
    with pytest.raises(UserError, match=r"none of its 1 runs is completed \(tiny.*: failed: no\)"):
        read_sweep(tmp_path / "table")
