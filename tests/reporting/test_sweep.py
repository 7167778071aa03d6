import json
from pathlib import Path

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.common.errors import UserError
from tometune.reporting.sweep import read_sweep
from tometune.runs.sweep_file import SCHEMA, Cell


def test_runs_have_their_settings_and_seeds_and_other_folders_are_no_runs(sweep):
    write_table(sweep / "wandb" / "inner", seeds=1)
    found = read_sweep(sweep)
    assert (len(found.runs), found.missing, found.notes) == (9, [], [])
    run = found.runs[-1]
    assert (run.model, run.data, run.rows) == ("tiny", "pydocs_3k", 3000)
    assert run.streams == {"data": 2, "order": 2, "adapter": 2, "generation": 2}
    assert (run.settings["trainer.learning_rate"], run.settings["model.revision"]) == (2e-4, "1")
    assert not any(key.startswith(("seeds", "tracking", "paths")) for key in run.settings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failed", "error": "OutOfMemoryError: full"}, "failed: OutOfMemoryError: full"),
        ({"status": "running"}, "running or interrupted"),
        ({"schema": 2}, "/"),
        ({"eval": {"base": {}}}, "completed without scores"),
        (None, "interrupted before run.json was written"),
        ('{"schema": 1, "status": "comp', "run.json is broken or truncated (Unterminated string starting at"),
        ("[1]", "run.json is not a record; repeat the command that made this run"),
        ({"model": {}}, "run.json is incomplete (KeyError('name')); repeat the command"),
        *(({key: None}, "run.json ") for key in ("model", "data", "seed", "eval")),
    ],
)
def test_a_run_that_is_not_completed_or_broken_is_missing_with_a_reason(sweep: Path, change, reason, caplog):
    """A broken record is also one warning with its file."""
    run = sorted(sweep.iterdir())[0]
    if change is None:
        (run / "run.json").unlink()
    elif isinstance(change, str):
        (run / "run.json").write_text(change)
    else:
        edit(run, **change)
    found = read_sweep(sweep)
    (missing,) = found.missing
    assert missing.reason.startswith(reason)
    assert ("another version of tometune wrote it" in missing.reason) == (reason == "/")
    assert (missing.run_id, missing.model, missing.data, missing.seed) == (run.name, "tiny", "pydocs_1k", 0)
    assert len(found.runs) == 8
    warnings = [line.message for line in caplog.records if "no sweep.json" not in line.message]
    assert len(warnings) == reason.startswith("run.json")
    assert all(line.startswith(f"{run / 'run.json'}: ") for line in warnings)


def test_cells_of_sweep_json_without_a_run_are_missing(sweep):
    there = sorted(path.name for path in sweep.iterdir())
    absent = Cell("tiny-pydocs_9k-s4-0", ["data=pydocs_9k", "seed=4", "+sweep=table"], "tiny", "pydocs_9k", 10, 4)
    # A wrong config has no run id: such a cell goes by what makes it differ.
    wrong = Cell(None, ["hydra/launcher=processes", "lora.r=0"], "tiny", "x", 10, 3, error="lora.r=0: no")
    cells = [*(Cell(name, []) for name in there[:-1]), absent, wrong]
    content = {"schema": SCHEMA, "cells": [entry.listed() for entry in cells]}
    (sweep / "sweep.json").write_text(json.dumps(content))
    found = read_sweep(sweep)
    assert [(cell.run_id, cell.model, cell.data, cell.seed, cell.reason) for cell in found.missing] == [
        ("hydra/launcher=processes lora.r=0", "tiny", "x", 3, "failed: lora.r=0: no"),
        ("tiny-pydocs_9k-s4-0", "tiny", "pydocs_9k", 4, "not started"),
    ]
    assert found.notes == [f"Not listed in sweep.json but included: {there[-1]}."]


def test_folders_that_cannot_be_reported_on(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    with pytest.raises(UserError, match="zzz: no such sweep folder; sweeps found: table"):
        read_sweep(tmp_path / "zzz")
    with pytest.raises(UserError, match="table: holds no runs; make some"):
        read_sweep(folder)
    run = write_run(folder)
    edit(run, status="failed", error="no")
    with pytest.raises(UserError, match=r"none of its 1 runs is completed \(tiny.*: failed: no\)"):
        read_sweep(folder)
