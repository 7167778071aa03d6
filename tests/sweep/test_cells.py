"""The cells of a command, as sweep.json lists them before the first run; and the data made for them in advance."""

import json
import os
import re
import socket
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.data.conftest import error_of
from tometune.config.command_line import CommandLine
from tometune.config.report import ReportConfig
from tometune.config.root import register
from tometune.config.sweep_cells import Jobs, jobs_of
from tometune.runs.lock import run_lock
from tometune.runs.run import runs_folder
from tometune.runs.sweep_file import Cell, read_cells, read_sweep_file
from tometune.sweep import prefetch
from tometune.sweep.cells import State, Status, cells_of, list_cells, status_of
from tometune.sweep.hooks import begin_sweep, check_primary, end_sweep, listed_cells
from tometune.sweep.plan import plan_sweep
from tometune.sweep.prefetch import missing_after_first, prefetched

register()
pytestmark = pytest.mark.usefixtures("in_empty_folder")

PYDOCS = ["model=tiny", "eval=pydocs", "tracking=none"]
OTHERS = "missing runs of other commands in this sweep (another sweep.name leaves them out):"


TWO = ("data=pydocs_1k", "seed=0,1")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cell(number: int, *overrides: str) -> Cell:
    return Cell(f"tiny-x-s{number}-aaaaaaaa", list(overrides) or [f"seed={number}"], "tiny", "x", 10, number)


@cache
def sweep_of(*overrides: str) -> Jobs:
    """Compose a sweep, once for all tests; its folder is below the working directory."""
    jobs = jobs_of(CommandLine([*PYDOCS, *overrides], multirun=True))
    assert jobs is not None
    return jobs


def test_a_preset_lists_its_cells_in_hydras_order_and_the_question(capsys):
    question = ["report.primary=[rougeL]", "report.margin=0.02"]
    jobs = jobs_of(CommandLine([*PYDOCS, "+sweep=table_pydocs", "seed=0,1", *question]))
    ((folder, six),) = cells_of(jobs.known).items()
    assert [(entry.data, entry.rows, entry.seed) for entry in six] == [
        (f"pydocs_{n}k", n * 1000, seed) for n in (1, 2, 3) for seed in (0, 1)
    ]
    assert len({entry.run_id for entry in six}) == 6
    assert all(str(entry.run_id).startswith(f"tiny-{entry.data}-s{entry.seed}-") for entry in six)
    assert six[0].overrides[:2] == ["data=pydocs_1k", "seed=0"]
    assert begin_sweep(jobs)
    assert capsys.readouterr().err == f"sweep {folder}: 6 runs, 6 not started\n"
    text = (folder / "sweep.json").read_bytes()
    list_cells(folder, list(reversed(six)))
    list_cells(folder, six[3:5])
    assert (folder / "sweep.json").read_bytes() == text
    content = json.loads(text)
    assert content["schema"] == 1
    assert set(content["cells"][0]) == {"run_id", "overrides", "model", "data", "rows", "seed"}
    assert read_sweep_file(folder) == (six, {"primary": ["rougeL"], "margin": 0.02})


def test_the_command_line_wins_over_the_preset_and_a_wrong_cell_keeps_its_error():
    ((first, second),) = cells_of(sweep_of("+sweep=seeds", "data=pydocs_1k", "seed=5", "lora.r=0,4").known).values()
    assert (first.seed, first.run_id, first.exit_status) == (5, None, 2)
    assert "lora.r" in str(first.error)
    assert (second.seed, second.error) == (5, None)
    assert jobs_of(CommandLine([*PYDOCS, "data=pydocs_1k"])) is None, "a single run is no sweep"


@pytest.mark.parametrize(
    ("overrides", "valid"),
    [
        (["trainer.max_steps=100,10", "trainer.warmup_steps=5,50"], [True, True, True, False]),
        (["trainer.max_steps=10,100", "trainer.warmup_steps=50,5"], [False, True, True, True]),
        (["eval=files,pydocs"], [False, True]),  # the files are not named
        (["~eval/task@eval.tasks.summarisation", "lora.r=8,0"], [True, False]),
    ],
)
def test_each_cell_is_checked_as_hydra_composes_it(overrides, valid):
    jobs = sweep_of("data=pydocs_1k", *overrides)
    assert [not job.problems for job in jobs.known] == valid
    assert {runs_folder(job.config).name for job in jobs.known} == {jobs.config.sweep.name}
    deleted = {text.rpartition(".")[2] for text in overrides if text.startswith("~")}
    assert not any(deleted & set(job.config.eval.tasks) for job in jobs.known)


@pytest.mark.parametrize(
    ("more", "ids", "overrides", "error"),
    [
        ([cell(1), cell(2)], "012", ["seed=0", "seed=1", "seed=2"], None),
        ([cell(0, "seed=0", "tracking=none")], "01", ["seed=0", "seed=1"], None),  # the same run, written differently
        ([replace(cell(0), run_id="tiny-x-s9-bbbbbbbb")], "91", ["seed=0", "seed=1"], None),  # its config has changed
        ([replace(cell(1), run_id=cell(0).run_id)], "0", ["seed=0"], None),  # both are the same run now
        ([replace(cell(0), error="x: no", exit_status=2)], "01", ["seed=0", "seed=1"], "x: no"),
    ],
)
def test_another_command_adds_what_is_new(tmp_path, more, ids, overrides, error):
    list_cells(tmp_path, [cell(0), cell(1)])
    list_cells(tmp_path, more)
    assert "".join(str(entry.run_id).split("-s")[1][0] for entry in read_cells(tmp_path)) == ids
    assert [" ".join(entry.overrides) for entry in read_cells(tmp_path)] == overrides
    assert read_cells(tmp_path)[0].error == error
    list_cells(tmp_path, [cell(0)])
    assert read_cells(tmp_path)[0].error is None, "an error stays until the next attempt"


def test_a_cell_that_a_node_with_a_gpu_listed_under_another_id_is_found_by_its_overrides():
    jobs = sweep_of(*TWO, "sweep.name=table")
    ((folder, (first, second)),) = cells_of(jobs.known).items()
    theirs = replace(first, run_id="tiny-x-s0-bbbbbbbb")
    list_cells(folder, [first, second])
    list_cells(folder, [theirs])
    assert listed_cells(jobs) == {folder: [theirs, second]}


def test_a_cell_without_a_run_is_forgotten_by_the_next_command(tmp_path):
    wrong = Cell(None, ["lora.r=0"], "tiny", "x", 10, 0, "lora.r=0: not 1 or more", 2)
    list_cells(tmp_path, [wrong, cell(0)], all_of_command=True)
    list_cells(tmp_path, [cell(1)])  # a single run of either command
    assert read_cells(tmp_path) == [wrong, cell(0), cell(1)]
    list_cells(tmp_path, [cell(1)], all_of_command=True)
    assert read_cells(tmp_path) == [cell(0), cell(1)]


@pytest.mark.parametrize(
    ("name", "done", "report", "status", "says"),
    [
        ("table", "01", {}, 0, []),
        # Another process completed the run after the report was written, which still says that it is missing.
        ("table", "01", {"1": "interrupted"}, 1, ["1 of 2 runs are missing:", "  {ids[1]}: interrupted"]),
        # Another process completed the run before the report was written.
        ("table", "0", {}, 0, []),
        ("table", "0", {"1": "not started"}, 1, ["1 of 2 runs are missing:", "  {ids[1]}: not started"]),
        ("table", "01", {"other": "not started"}, 1, [OTHERS, "  other: not started"]),
        ("adhoc", "01", {"other": "not started"}, 0, []),
        ("table", "0", None, 1, ["1 of 2 runs are missing:", "  {ids[1]}: not started"]),
    ],
)
def test_the_exit_status_of_a_sweep_is_that_of_its_report(capsys, monkeypatch, *, name, done, report, status, says):
    jobs = sweep_of(*TWO, f"sweep.name={name}")
    ((folder, listed),) = cells_of(jobs.known).items()
    ids = {str(number): str(entry.run_id) for number, entry in enumerate(listed)}
    states = {ids[number]: State.completed for number in done}
    found = lambda _, cell: Status(cell, states.get(cell.name, State.not_started))  # noqa: E731
    monkeypatch.setattr("tometune.sweep.hooks.status_of", found)
    missing = None if report is None else {ids.get(key, key): reason for key, reason in report.items()}
    assert end_sweep(jobs, {folder: missing}) == status
    assert capsys.readouterr().err.splitlines() == [line.format(ids=[*ids.values()]) for line in says]


@pytest.mark.parametrize(
    ("primary", "problem"),
    [
        (">pydocs_3k lora.r=9:rougeL", "no cell pydocs_3k lora.r=9; did you mean pydocs_3k lora.r=8"),
        ("pydocs_3k lora.r=8>pydocs_1k lora.r=16", "these cells are not compared"),
        ("pydocs_3k lora.r=8>pydocs_1k lora.r=8", None),
        ("data:rougeL", None),
        ("rouge1", None),
    ],
)
def test_a_question_about_cells_that_will_not_exist(capsys, primary, problem):
    four = sweep_of("data=pydocs_1k,pydocs_3k", "lora.r=8,16", "sweep.name=ranks")
    jobs, other = (
        replace(jobs, config=replace(jobs.config, report=ReportConfig(primary=primary)))
        for jobs in (four, sweep_of("+sweep=seeds", "data=pydocs_1k"))
    )
    problem = problem and f"report.primary={primary}: {problem}"
    for start in (check_primary, lambda jobs: plan_sweep(jobs, print)) if problem else ():
        assert error_of(start, jobs).startswith(problem)
    list_cells(Path("multirun/ranks"), [cell(1)])
    check_primary(jobs)
    assert capsys.readouterr().err.startswith(problem or "")
    check_primary(other)  # the cells that it is compared with are those of another command


def test_the_state_of_a_cell_follows_its_files(tmp_path):
    run, failed = tmp_path / cell(0).name, replace(cell(0), error="x: no", exit_status=2)
    assert status_of(tmp_path, cell(0)) == Status(cell(0), State.not_started)
    with run_lock(run):
        here = f"process {os.getpid()} on {socket.gethostname()}"
        assert status_of(tmp_path, cell(0)) == Status(cell(0), State.elsewhere, here)
    assert status_of(tmp_path, failed) == Status(failed, State.failed, "x: no", wrong_input=True)
    run.mkdir()
    for record, state, reason, wrong_input in (
        ("{", State.interrupted, r"run\.json is broken .*; run the same command again to resume", False),
        ('{"schema": 1, "status": "running", "attempts": 2}', State.interrupted, "in attempt 2; run the same", False),
        ('{"schema": 1, "status": "failed", "error": "boom"}', State.failed, "boom", False),
        ('{"schema": 9}', State.failed, ".*/run.json: not of schema 1, so another version", True),
    ):
        (run / "run.json").write_text(record)
        status = status_of(tmp_path, cell(0))
        assert (status.state, status.wrong_input) == (state, wrong_input)
        assert re.match(reason, status.reason), status
    (run / "run.json").write_text('{"schema": 1, "status": "running"}')
    assert status_of(tmp_path, failed).reason == "x: no", "its last attempt ended before it could update the record"


def test_the_question_is_recorded_until_the_first_run_has_started(tmp_path):
    list_cells(tmp_path, [cell(0)])
    assert read_sweep_file(tmp_path) == ([cell(0)], None), "as versions without questions wrote it"
    list_cells(tmp_path, [cell(1)], question=ReportConfig(primary="rougeL", margin=0.01))
    asked = {"primary": ["rougeL"], "margin": 0.01}
    assert read_sweep_file(tmp_path) == ([cell(0), cell(1)], asked)
    list_cells(tmp_path, [cell(1)], question=ReportConfig(primary=["rouge1"]))
    asked = {"primary": ["rouge1"], "margin": None}
    assert read_sweep_file(tmp_path)[1] == asked
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    list_cells(tmp_path, [cell(2)], question=ReportConfig(primary="rouge2"))
    list_cells(tmp_path, [cell(3)])
    assert read_sweep_file(tmp_path) == ([cell(number) for number in range(4)], asked)


TEXTS = ["", "{", "[]", "\0", '{"schema": 1}', '{"schema": 1, "cells": [{"x": 1}]}']


def test_a_broken_list_is_written_again_and_one_of_another_version_is_kept(tmp_path):
    path = tmp_path / "sweep.json"
    for text in TEXTS:
        path.write_text(text)
        problem = error_of(read_cells, tmp_path)
        assert re.search(r"sweep\.json: is (empty|broken|not a list of runs) ?.*; run the sweep again", problem), text
        list_cells(tmp_path, [cell(0)])
        assert read_cells(tmp_path) == [cell(0)]
    path.write_text('{"schema": 9, "cells": []}')
    assert "sweep.json: not of schema 1, so another version" in error_of(list_cells, tmp_path, [cell(0)])
    assert path.read_text() == '{"schema": 9, "cells": []}'
    assert re.search(r"sweep\.json: cannot be written to .*paths\.multirun", error_of(list_cells, path, [cell(0)]))


SIZES = ("data=pydocs_3k", "data.rows=1100,1200,0,1300", "data.base.rows=1000", "data.name=${data.rows}-rows")


def test_the_data_of_all_valid_runs_but_the_first_is_made_in_advance_and_only_with_a_gpu(monkeypatch):
    jobs = sweep_of(*SIZES, "sweep.name=sizes")
    names = [(config.data.rows, config.data.name) for config in missing_after_first(jobs)]
    assert names == [(1200, "1200-rows"), (1300, "1300-rows")]
    monkeypatch.setattr(prefetch, "NVIDIA_DRIVER", Path("none"))
    monkeypatch.setattr(prefetch, "missing_after_first", lambda _: pytest.fail("it looked for runs"))
    with prefetched(jobs):
        pass


@pytest.mark.nightly
def test_the_tokens_of_later_runs_are_cached_while_the_body_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(prefetch, "NVIDIA_DRIVER", tmp_path)
    with prefetched(sweep_of(*SIZES, "sweep.name=sizes", f"paths.cache={tmp_path}")):
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("tokens/*/config.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.2)
    assert len(list(tmp_path.glob("tokens/*/config.json"))) >= 2
