"""sweep.json: every cell is listed before the first run, the same for the same command, with its error."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tometune.common.errors import UserError
from tometune.config.command_line import CommandLine
from tometune.config.jobs import jobs_of
from tometune.config.root import register
from tometune.runs.sweep_file import Cell, read_cells
from tometune.sweep.cells import cells_of, list_cells

register()

PYDOCS = ["model=tiny", "eval=pydocs", "tracking=none"]


def cell(number: int, *overrides: str) -> Cell:
    return Cell(f"tiny-x-s{number}-aaaaaaaa", list(overrides) or [f"seed={number}"], "tiny", "x", 10, number)


def cells(*overrides: str) -> list[Cell]:
    jobs = jobs_of(CommandLine([*PYDOCS, *overrides], multirun=True))
    assert jobs is not None
    (found,) = cells_of(jobs.known).values()
    return found


@pytest.fixture(scope="module")
def nine() -> list[Cell]:
    """The cells of a preset."""
    return cells("+sweep=table_pydocs", "model=tiny")


def test_a_preset_gives_nine_cells_in_hydras_order(nine: list[Cell]) -> None:
    assert [(entry.data, entry.rows, entry.seed) for entry in nine] == [
        (f"pydocs_{n}k", n * 1000, seed) for n in (1, 2, 3) for seed in (0, 1, 2)
    ]
    assert len({entry.run_id for entry in nine}) == 9
    assert all(str(entry.run_id).startswith(f"tiny-{entry.data}-s{entry.seed}-") for entry in nine)
    assert nine[0].overrides[:2] == ["data=pydocs_1k", "seed=0"]


def test_the_command_line_wins_over_the_preset() -> None:
    assert [entry.seed for entry in cells("+sweep=seeds", "data=pydocs_1k", "seed=5,6")] == [5, 6]


def test_a_single_run_is_no_sweep() -> None:
    assert jobs_of(CommandLine([*PYDOCS, "data=pydocs_1k"])) is None


def test_a_preset_needs_no_multirun() -> None:
    jobs = jobs_of(CommandLine([*PYDOCS, "data=pydocs_1k", "+sweep=seeds"]))
    assert jobs is not None
    assert len(jobs.known) == 3


def test_the_error_of_a_cell_is_in_its_entry() -> None:
    first, second = cells("data=pydocs_1k", "lora.r=0,4")
    assert (first.run_id, first.exit_status) == (None, 2)
    assert "lora.r" in str(first.error)
    assert second.error is None


def test_the_list_is_the_same_for_the_same_command(tmp_path: Path, nine: list[Cell]) -> None:
    list_cells(tmp_path, nine)
    text = (tmp_path / "sweep.json").read_bytes()
    list_cells(tmp_path, list(reversed(nine)))
    list_cells(tmp_path, nine[3:5])
    assert (tmp_path / "sweep.json").read_bytes() == text
    content = json.loads(text)
    assert content["schema"] == 1
    assert set(content["cells"][0]) == {"run_id", "overrides", "model", "data", "rows", "seed"}
    assert read_cells(tmp_path) == nine


def test_another_command_adds_its_cells(tmp_path: Path) -> None:
    list_cells(tmp_path, [cell(0), cell(1)])
    list_cells(tmp_path, [cell(1), cell(2)])
    assert [entry.seed for entry in read_cells(tmp_path)] == [0, 1, 2]


def test_a_run_is_listed_once_however_it_is_written(tmp_path: Path) -> None:
    list_cells(tmp_path, [cell(0, "seed=0"), cell(1)])
    list_cells(tmp_path, [cell(0, "seed=0", "tracking=none")])
    assert [entry.overrides for entry in read_cells(tmp_path)] == [["seed=0"], ["seed=1"]]


def test_a_changed_config_with_the_same_overrides_replaces_the_cell(tmp_path: Path) -> None:
    list_cells(tmp_path, [cell(0), cell(1)])
    list_cells(tmp_path, [replace(cell(0), run_id="tiny-x-s0-bbbbbbbb")])
    assert [entry.run_id for entry in read_cells(tmp_path)] == ["tiny-x-s0-bbbbbbbb", "tiny-x-s1-aaaaaaaa"]


def test_an_error_stays_until_the_next_attempt(tmp_path: Path) -> None:
    list_cells(tmp_path, [cell(0), cell(1)])
    list_cells(tmp_path, [replace(cell(1), error="data.base.path=x: no such file", exit_status=2)])
    assert [entry.error for entry in read_cells(tmp_path)] == [None, "data.base.path=x: no such file"]
    list_cells(tmp_path, [cell(1)])
    assert [entry.error for entry in read_cells(tmp_path)] == [None, None]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9, "cells": []}', '{"schema": 1, "cells": [{"x": 1}]}'])
def test_a_broken_list_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: not a list of runs .*delete it") as error:
        read_cells(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_in_the_way_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("")
    with pytest.raises(UserError, match=r"sweep: cannot be written to .*paths\.multirun"):
        list_cells(tmp_path / "sweep", [cell(0)])
