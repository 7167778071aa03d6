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


def test_runs_with_their_settings_and_seeds(sweep):
    found = read_sweep(sweep)
    assert len(found.runs) == 9
    assert (found.missing, found.notes) == ([], [])
    run = found.runs[-1]
    assert run.streams == {"data": 2, "order": 2, "adapter": 2, "generation": 2}
    assert run.settings["trainer.learning_rate"] == 2e-4
    assert run.settings["model.revision"] == "1"
    assert not any(key.startswith(("seeds", "tracking", "paths")) for key in run.settings)


def test_half_written_failed_and_running_runs_are_missing_with_a_reason(sweep):
    folders = sorted(sweep.iterdir())
    (folders[0] / "run.json").write_text('{"schema": 1, "status": "comp')
    edit(folders[1], status="failed", error="OutOfMemoryError: CUDA out of memory")
    edit(folders[2], status="running")
    (folders[3] / "run.json").unlink()
    edit(folders[4], eval={"base": {}})
    found = read_sweep(sweep)
    assert len(found.runs) == 4
    reasons = {cell.run_id: cell.reason for cell in found.missing}
    assert reasons[folders[0].name].startswith("run.json is broken (Unterminated string ")
    assert reasons[folders[0].name].endswith(
        "; delete it and start the sweep again; the run resumes from its checkpoint"
    )
    assert reasons[folders[1].name] == "failed: OutOfMemoryError: CUDA out of memory"
    assert reasons[folders[2].name] == "running or interrupted"
    assert reasons[folders[3].name] == "interrupted before run.json was written"
    assert reasons[folders[4].name] == "completed without scores"
    first = found.missing[0]
    assert (first.model, first.data, first.seed) == ("tiny", "pydocs_1k", 0)


def test_cells_that_should_be_there(sweep):
    there = sorted(path.name for path in sweep.iterdir())
    overrides = ["data=pydocs_9k", "seed=4", "+sweep=table"]
    list_cells(sweep, *(cell(name) for name in there[:-1]), cell("tiny-pydocs_9k-s4-0", "pydocs_9k", 4, overrides))
    found = read_sweep(sweep)
    (absent,) = found.missing
    assert (absent.run_id, absent.data, absent.seed) == ("tiny-pydocs_9k-s4-0", "pydocs_9k", 4)
    assert absent.reason == "not started"
    assert found.notes == [f"Not listed in sweep.json but included: {there[-1]}."]


def test_cells_that_ended_before_they_had_a_record_say_why(sweep):
    """A wrong config has no run id: such cells go by what makes them differ."""
    launcher = "hydra/launcher=processes"
    wrong = [cell(None, "x", 3, [launcher, f"lora.r={rank}"], error=f"lora.r={rank}: no") for rank in (0, -1)]
    list_cells(sweep, *wrong, cell("tiny-x-s0-aaaaaaaa", "x", 0, ["data=x"], error="the base has 1,000"))
    found = read_sweep(sweep)
    assert [(cell.run_id, cell.seed, cell.reason) for cell in found.missing] == [
        ("hydra/launcher=processes lora.r=-1", 3, "failed: lora.r=-1: no"),
        ("hydra/launcher=processes lora.r=0", 3, "failed: lora.r=0: no"),
        ("tiny-x-s0-aaaaaaaa", 0, "failed: the base has 1,000"),
    ]
    assert (found.missing[2].model, found.missing[2].data) == ("tiny", "x")


def test_other_schema_versions_are_rejected(sweep):
    odd = sorted(sweep.iterdir())[3]
    edit(odd, schema=2)
    with pytest.raises(UserError, match=rf"another version.*: {odd.name} \(schema 2\); move"):
        read_sweep(sweep)


def test_no_folder_no_runs_none_completed(tmp_path):
    (tmp_path / "table").mkdir()
    with pytest.raises(UserError, match=r"tabel: no such sweep folder; did you mean table\?"):
        read_sweep(tmp_path / "tabel")
    with pytest.raises(UserError, match="zzz: no such sweep folder; sweeps found: table"):
        read_sweep(tmp_path / "zzz")
    with pytest.raises(UserError, match="table: holds no runs; make some"):
        read_sweep(tmp_path / "table")
    edit(write_run(tmp_path / "table"), status="failed", error="no")
    with pytest.raises(UserError, match=r"none of its 1 runs is completed \(tiny.*: failed: no\)"):
        read_sweep(tmp_path / "table")


def test_other_folders_are_no_runs(sweep):
    (sweep / "wandb").mkdir()
    write_table(sweep / "wandb" / "inner", seeds=1)
    assert len(read_sweep(sweep).runs) == 9
