import shutil

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.common.errors import UserError
from tometune.reporting.grouping import expected_seeds, group, one_factor, pairs
from tometune.reporting.sweep import read_sweep


def grouped(folder):
    return group(read_sweep(folder))


def labels(folder):
    """The labels of all cells, and of the pairs that are compared."""
    cells, _ = grouped(folder)
    return [cell.label for cell in cells], [(a.label, b.label) for a, b in pairs(cells)]


def test_cells_are_ordered_by_size_and_hold_their_seeds(sweep):
    cells, notes = grouped(sweep)
    assert [(cell.label, list(cell.runs)) for cell in cells] == [(f"pydocs_{size}k", [0, 1, 2]) for size in (1, 2, 3)]
    assert notes == []
    assert [(cells.index(a), cells.index(b)) for a, b in pairs(cells)] == [(1, 0), (2, 0), (2, 1)]


def test_models_have_cells_of_their_own_and_are_not_compared(tmp_path):
    for model in ("tiny", "small"):
        for rows in (20_000, 3_000):
            write_run(tmp_path, f"d{rows}", rows, model=model)
    cells, compared = labels(tmp_path)
    assert cells == ["small d3000", "small d20000", "tiny d3000", "tiny d20000"], "sizes are ordered as numbers"
    assert compared == [("small d20000", "small d3000"), ("tiny d20000", "tiny d3000")]


def test_settings_that_differ_name_the_cell(tmp_path):
    for rank in (8, 16, 4):
        for rows in (1_000, 2_000):
            write_run(tmp_path, f"d{rows}", rows, settings={"lora.r": rank})
    cells, compared = labels(tmp_path)
    assert cells[:3] == ["d1000 lora.r=4", "d1000 lora.r=8", "d1000 lora.r=16"]
    assert ("d2000 lora.r=4", "d1000 lora.r=4") in compared
    assert ("d1000 lora.r=16", "d1000 lora.r=4") in compared
    assert ("d2000 lora.r=16", "d1000 lora.r=4") not in compared, "two things differ"


def test_full_fine_tuning_is_a_cell_next_to_adapters(tmp_path):
    for settings in ({"lora.r": 8}, {"lora.enabled": False, "lora.r": 8}, {"lora.r": 4}):
        write_run(tmp_path, settings=settings)
    cells, compared = labels(tmp_path)
    assert cells == ["pydocs_1k lora=adapter lora.r=4", "pydocs_1k lora=adapter lora.r=8", "pydocs_1k lora=full"]
    assert len(compared) == 3


def test_a_setting_that_changes_with_the_data_is_a_note(tmp_path):
    for rows in (1_000, 2_000):
        write_run(tmp_path, f"d{rows}", rows, settings={"trainer.max_steps": rows // 10})
    cells, notes = grouped(tmp_path)
    assert [cell.label for cell in cells] == ["d1000", "d2000"]
    assert notes == [
        "trainer.max_steps changes together with the data (d1000: 100, d2000: 200), so the comparisons cover both."
    ]


def test_runs_with_single_streams_set_count_for_the_variance_only(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, seed=seed)
    for stream in ("data", "order"):
        for value in (7, 8):
            write_run(tmp_path, streams={stream: value})
    (cell,), notes = grouped(tmp_path)
    assert (list(cell.runs), len(cell.stream_runs)) == ([0, 1, 2], 4)
    groups = {stream: [len(runs) for runs in one_factor(cell, stream)] for stream in ("data", "order", "adapter")}
    assert groups == {"data": [3], "order": [3], "adapter": []}
    assert notes == ["Runs with separately set streams (4) count for the variance by cause only."]


def test_a_sweep_over_one_stream_has_its_values_as_seeds(tmp_path):
    for value in (3, 4, 5):
        write_run(tmp_path, streams={"data": value})
    assert list(grouped(tmp_path)[0][0].runs) == [3, 4, 5]


def test_a_sweep_without_a_run_with_one_seed_is_rejected(tmp_path):
    for stream in ("data", "order"):
        write_run(tmp_path, streams={stream: 7})
    with pytest.raises(UserError, match="every run sets single streams"):
        grouped(tmp_path)


def test_runs_with_the_same_settings_and_seeds_are_rejected(sweep):
    first = sorted(sweep.iterdir())[0]
    twin = first.with_name("tiny-pydocs_1k-s0-ffffffff")
    shutil.copytree(first, twin)
    with pytest.raises(UserError, match=f"{first.name} and {twin.name}: the same settings and seeds"):
        grouped(sweep)


def test_missing_seeds_are_expected_where_they_belong(tmp_path):
    folders = write_table(tmp_path / "sizes")
    ranks = [write_run(tmp_path / "ranks", seed=seed, settings={"lora.r": rank}) for rank in (4, 8) for seed in (0, 1)]
    for folder in (folders[1], folders[5], ranks[0]):
        edit(folder, status="running")
    for name, expected in (("sizes", [3, 3, 3]), ("ranks", [2, 2])):
        found = read_sweep(tmp_path / name)
        assert [expected_seeds(cell, found.missing) for cell in group(found)[0]] == expected
