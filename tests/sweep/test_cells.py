"""sweep.json: every cell is listed before the first run, the same for the same command, with its error."""

import json
from dataclasses import replace

import pytest

from tometune.common.errors import UserError
from tometune.config.command_line import CommandLine
from tometune.config.report import ReportConfig
from tometune.config.root import register
from tometune.config.sweep_cells import jobs_of
from tometune.runs.run import runs_folder
from tometune.runs.sweep_file import Cell, read_cells, read_sweep_file
from tometune.sweep.cells import State, Status, cells_of, list_cells
from tometune.sweep.hooks import begin_sweep, check_primary, end_sweep, listed_cells
from tometune.sweep.plan import plan_sweep

register()

PYDOCS = ["model=tiny", "eval=pydocs", "tracking=none"]
OTHERS = "missing runs of other commands in this sweep (another sweep.name leaves them out):"


def cell(number: int, *overrides: str) -> Cell:
    return Cell(f"tiny-x-s{number}-aaaaaaaa", list(overrides) or [f"seed={number}"], "tiny", "x", 10, number)


def cells(*overrides: str) -> list[Cell]:
    jobs = jobs_of(CommandLine([*PYDOCS, *overrides]))
    (found,) = cells_of(jobs.known).values()
    return found


def test_a_preset_lists_its_cells_in_hydras_order(tmp_path):
    nine = cells("+sweep=table_pydocs", "model=tiny")
    assert [(entry.data, entry.rows, entry.seed) for entry in nine] == [
        (f"pydocs_{n}k", n * 1000, seed) for n in (1, 2, 3) for seed in (0, 1, 2)
    ]
    assert len({entry.run_id for entry in nine}) == 9
    assert all(str(entry.run_id).startswith(f"tiny-{entry.data}-s{entry.seed}-") for entry in nine)
    assert nine[0].overrides[:2] == ["data=pydocs_1k", "seed=0"]
    list_cells(tmp_path, nine)
    text = (tmp_path / "sweep.json").read_bytes()
    list_cells(tmp_path, list(reversed(nine)))
    list_cells(tmp_path, nine[3:5])
    assert (tmp_path / "sweep.json").read_bytes() == text
    content = json.loads(text)
    assert content["schema"] == 1
    assert set(content["cells"][0]) == {"run_id", "overrides", "model", "data", "rows", "seed"}
    assert read_cells(tmp_path) == nine


def test_a_name_that_depends_on_another_override_differs_by_cell():
    sizes = ["data=pydocs_3k", "data.rows=1500,2500", "data.name=${data.rows}-rows"]
    jobs = jobs_of(CommandLine([*PYDOCS, *sizes, "sweep.name=sizes"], multirun=True))
    assert [job.config.data.name for job in jobs.known] == ["1500-rows", "2500-rows"]


def test_the_command_line_wins_over_the_preset_and_a_wrong_cell_keeps_its_error():
    first, second = cells("+sweep=seeds", "data=pydocs_1k", "seed=5", "lora.r=0,4")
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
        (["~eval.tasks.summarisation", "~eval.tasks.question_answering", "seed=0,1"], [True, True]),
        (["~eval/task@eval.tasks.summarisation", "lora.r=8,0"], [True, False]),
    ],
)
def test_each_cell_is_checked_as_hydra_composes_it(overrides, valid):
    jobs = jobs_of(CommandLine([*PYDOCS, "data=pydocs_1k", *overrides], multirun=True))
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


def test_a_cell_that_a_node_with_a_gpu_listed_under_another_id_is_found_by_its_overrides(tmp_path):
    jobs = jobs_of(
        CommandLine(
            [*PYDOCS, "data=pydocs_1k", "seed=0,1", "sweep.name=x", f"paths.multirun={tmp_path}"], multirun=True
        )
    )
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
def test_the_exit_status_of_a_sweep_is_that_of_its_report(
    tmp_path, capsys, monkeypatch, *, name, done, report, status, says
):
    overrides = [*PYDOCS, "data=pydocs_1k", "seed=0,1", f"sweep.name={name}", f"paths.multirun={tmp_path}"]
    jobs = jobs_of(CommandLine(overrides, multirun=True))
    ((folder, listed),) = cells_of(jobs.known).items()
    ids = {str(number): str(entry.run_id) for number, entry in enumerate(listed)}
    states = {ids[number]: State.completed for number in done}
    status_of = lambda _, cell: Status(cell, states.get(cell.name, State.not_started))  # noqa: E731
    monkeypatch.setattr("tometune.sweep.hooks.status_of", status_of)
    missing = None if report is None else {ids.get(key, key): reason for key, reason in report.items()}
    assert end_sweep(jobs, {folder: missing}) == status
    assert capsys.readouterr().err.splitlines() == [line.format(ids=[*ids.values()]) for line in says]


def test_a_command_records_its_question_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(
        CommandLine([*PYDOCS, "+sweep=seeds", "data=pydocs_1k", "report.primary=[rougeL]", "report.margin=0.02"])
    )
    assert begin_sweep(jobs)
    assert read_sweep_file(tmp_path / "multirun" / "seeds")[1] == {"primary": ["rougeL"], "margin": 0.02}


@pytest.mark.parametrize(
    ("primary", "problem"),
    [
        (">mix_300k lora.r=9:rougeL", "no cell mix_300k lora.r=9; did you mean mix_300k lora.r=8"),
        pytest.param("mix_300k lora.r=8>mix_100k lora.r=16", "these cells are not compared", marks=pytest.mark.nightly),
        pytest.param("mix_300k lora.r=8>mix_100k lora.r=8", None, marks=pytest.mark.nightly),
        ("data:rougeL", None),
        pytest.param("rouge1", None, marks=pytest.mark.nightly),
    ],
)
def test_a_question_about_cells_that_will_not_exist(tmp_path, monkeypatch, capsys, primary, problem):
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(CommandLine(["+sweep=capacity", f"report.primary='{primary}'", "lora.r=8,16", "seed=0,1"]))
    problem = problem and f"report.primary={primary}: {problem}"
    for start in (check_primary, lambda jobs: plan_sweep(jobs, print)) if problem else ():
        with pytest.raises(UserError) as error:
            start(jobs)
        assert str(error.value).startswith(problem)
    list_cells(tmp_path / "multirun" / "capacity", [cell(1)])
    check_primary(jobs)
    assert capsys.readouterr().err.startswith(problem or "")
    one = jobs_of(CommandLine(["+sweep=seeds", f"report.primary='{primary}'"]))
    check_primary(one)  # the cells that it is compared with are those of another command


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


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"schema": 1}', '{"schema": 1, "cells": [{"x": 1}]}'])
def test_a_broken_list_is_an_error_of_one_line_and_the_next_command_writes_it_again(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(
        UserError, match=r"sweep\.json: is (empty|broken|not a list of runs) ?.*; run the sweep again"
    ) as error:
        read_cells(tmp_path)
    assert "\n" not in str(error.value)
    list_cells(tmp_path, [cell(0)])
    assert read_cells(tmp_path) == [cell(0)]


def test_a_list_of_another_version_is_kept(tmp_path):
    text = '{"schema": 9, "cells": []}'
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: not of schema 1, .*; move it away"):
        list_cells(tmp_path, [cell(0)])
    assert (tmp_path / "sweep.json").read_text() == text
    with pytest.raises(UserError, match=r"sweep\.json: cannot be written to .*paths\.multirun"):
        list_cells(tmp_path / "sweep.json", [cell(0)])
