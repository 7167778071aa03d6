import shutil

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.common.errors import UserError
from tometune.reporting.cells import expected_seeds, group, one_factor, pairs
from tometune.reporting.sweep import read_sweep


def grid(folder):
    return group(read_sweep(folder))


def test_cells_by_size_with_their_seeds(sweep):
    found = grid(sweep)
    assert [cell.label for cell in found.cells] == ["pydocs_1k", "pydocs_2k", "pydocs_3k"]
    assert [list(cell.runs) for cell in found.cells] == [[0, 1, 2]] * 3
    assert found.varied == ["data", "order", "adapter", "generation"]
    assert found.notes == []
    assert pairs(found.cells) == [(1, 0), (2, 0), (2, 1)]


def test_models_have_cells_of_their_own_and_are_not_compared(tmp_path):
    for model in ("tiny", "small"):
        for rows in (20_000, 3_000):
            write_run(tmp_path / "s", f"d{rows}", rows, model=model)
    found = grid(tmp_path / "s").cells
    labels = ["small d3000", "small d20000", "tiny d3000", "tiny d20000"]
    assert [cell.label for cell in found] == labels, "sizes are ordered as numbers"
    assert pairs(found) == [(1, 0), (3, 2)]


def test_hyperparameters_that_differ_name_the_cell(tmp_path):
    for rank in (8, 16, 4):
        for rows in (1_000, 2_000):
            write_run(tmp_path / "s", f"d{rows}", rows, settings={"lora.r": rank})
    found = grid(tmp_path / "s").cells
    assert [cell.label for cell in found[:3]] == ["d1000 lora.r=4", "d1000 lora.r=8", "d1000 lora.r=16"]
    named = {(found[a].label, found[b].label) for a, b in pairs(found)}
    assert ("d2000 lora.r=4", "d1000 lora.r=4") in named
    assert ("d1000 lora.r=16", "d1000 lora.r=4") in named
    assert ("d2000 lora.r=16", "d1000 lora.r=4") not in named, "two things differ"


def test_full_fine_tuning_is_a_cell_next_to_adapters(tmp_path):
    for settings in ({"lora.r": 8}, {"lora.enabled": False, "lora.r": 8}, {"lora.r": 4}):
        write_run(tmp_path / "ranks", settings=settings)
    found = grid(tmp_path / "ranks").cells
    assert [cell.label for cell in found] == [
        *("pydocs_1k lora=adapter lora.r=4", "pydocs_1k lora=adapter lora.r=8", "pydocs_1k lora=full"),
    ]
    assert pairs(found) == [(1, 0), (2, 0), (2, 1)]


def test_a_setting_that_changes_with_the_data_is_a_note(tmp_path):
    for rows in (1_000, 2_000):
        write_run(tmp_path / "s", f"d{rows}", rows, settings={"trainer.max_steps": rows // 10})
    found = grid(tmp_path / "s")
    assert [cell.label for cell in found.cells] == ["d1000", "d2000"]
    assert found.notes == [
        "trainer.max_steps changes together with the data (d1000: 100, d2000: 200), so the comparisons cover both."
    ]


def test_streams_that_vary_separately(tmp_path):
    folder = tmp_path / "s"
    for seed in (0, 1, 2):
        write_run(folder, seed=seed)
    for stream in ("data", "order"):
        for value in (7, 8):
            write_run(folder, seed=0, streams={stream: value})
    found = grid(folder)
    (cell,) = found.cells
    assert list(cell.runs) == [0, 1, 2]
    assert len(cell.stream_runs) == 4
    assert [len(runs) for runs in one_factor(cell, "data")] == [3]
    assert [len(runs) for runs in one_factor(cell, "order")] == [3]
    assert one_factor(cell, "adapter") == []
    assert found.notes == ["Runs with separately set streams (4) count for the variance by cause only."]


def test_a_sweep_over_one_stream_has_its_values_as_seeds(tmp_path):
    for value in (3, 4, 5):
        write_run(tmp_path / "s", seed=0, streams={"data": value})
    found = grid(tmp_path / "s")
    assert found.varied == ["data"]
    assert list(found.cells[0].runs) == [3, 4, 5]


def test_no_run_with_one_seed_for_all_streams(tmp_path):
    for stream in ("data", "order"):
        write_run(tmp_path / "s", seed=0, streams={stream: 7})
    with pytest.raises(UserError, match="every run sets single streams"):
        grid(tmp_path / "s")


def test_twins_are_rejected(sweep):
    first = sorted(sweep.iterdir())[0]
    twin = first.with_name("tiny-pydocs_1k-s0-ffffffff")
    shutil.copytree(first, twin)
    with pytest.raises(UserError, match=f"{first.name} and {twin.name}: the same settings and seeds"):
        grid(sweep)


def test_missing_seeds_are_expected_where_they_belong(tmp_path):
    folders = write_table(tmp_path / "s")
    edit(folders[1], status="failed", error="no")
    edit(folders[5], status="running")
    found = read_sweep(tmp_path / "s")
    assert [expected_seeds(cell, found.missing) for cell in group(found).cells] == [3, 3, 3]
    ranks = [write_run(tmp_path / "r", seed=seed, settings={"lora.r": rank}) for rank in (4, 8) for seed in (0, 1)]
    edit(ranks[0], status="running")
    found = read_sweep(tmp_path / "r")
    assert [expected_seeds(cell, found.missing) for cell in group(found).cells] == [2, 2]
