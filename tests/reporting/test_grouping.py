import json
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
    with pytest.raises(UserError, match=f"{first.name} and {twin.name}: the same settings, seeds and data"):
        grouped(sweep)


def hash_of(letter):
    return letter * 20


@pytest.mark.parametrize(
    ("change", "label", "note"),
    [
        ({"inputs": {"data.base": f"files-{hash_of('b')}"}}, "data.base=files-bbbbbbbb", "content of data.base"),
        ({"model": {"name": "tiny", "dtype": "bfloat16"}}, "model.dtype=bfloat16", "number format of the model"),
        ({"meaning": 5}, "meaning=5", "version of tometune"),
    ],
)
def test_runs_that_differ_in_their_data_number_format_or_version_are_not_seeds_of_one_cell(
    tmp_path, change, label, note
):
    same = {"inputs": {"data.base": f"files-{hash_of('a')}"}, "model": {"name": "tiny", "dtype": "float32"}}
    for seed in range(3):
        run = write_run(tmp_path, seed=seed)
        edit(run, **{"meaning": 6, **same, **(change if seed == 2 else {})})
    cells, notes = grouped(tmp_path)
    assert sorted(list(cell.runs) for cell in cells) == [[0, 1], [2]]
    assert f"pydocs_1k {label}" in [cell.label for cell in cells]
    (text,) = notes
    assert text.startswith(f"The {note}")
    assert ": 2 runs, the last one of 2026-11-24" in text
    assert ": 1 run, the last one of 2026-11-24" in text


def test_the_data_of_records_without_inputs_is_read_from_mix_json(tmp_path):
    for seed, letter in enumerate("aab"):
        path = write_run(tmp_path, seed=seed) / "mix.json"
        mix = json.loads(path.read_text()) | {"base": {"fingerprint": f"files-{hash_of(letter)}/auto/v3"}}
        path.write_text(json.dumps(mix))
    edit(sorted(tmp_path.iterdir())[0], inputs={"data.base": f"files-{hash_of('a')}", "model": "x"})
    cells, _ = grouped(tmp_path)
    assert {cell.label: list(cell.runs) for cell in cells} == {
        "pydocs_1k data.base=files-aaaaaaaa": [0, 1],
        "pydocs_1k data.base=files-bbbbbbbb": [2],
    }


def test_mixes_with_other_rows_for_the_same_seed_are_not_averaged(tmp_path):
    """Nothing recorded says why, so no two digests share a cell; mixes without this problem keep their seeds."""
    for seed in range(2):
        write_run(tmp_path, "d1000", 1_000, seed=seed)
        edit(write_run(tmp_path, "d2000", 2_000, seed=seed), data={"name": "d2000", "rows": 2_000, "digest": f"{seed}"})
    edit(
        write_run(tmp_path, "d2000", 2_000, streams={"order": 5}), data={"name": "d2000", "rows": 2_000, "digest": "x"}
    )
    cells, compared = labels(tmp_path)
    assert cells == ["d1000", "d2000 data.digest=0", "d2000 data.digest=1", "d2000 data.digest=x"]
    assert ("d2000 data.digest=0", "d1000") in compared


def test_a_mix_with_another_pool_is_compared_with_the_base_alone(tmp_path):
    base = {"data.base": f"files-{hash_of('a')}"}
    for seed in range(2):
        edit(write_run(tmp_path, "d1000", 1_000, seed=seed), inputs=base)
        pool = {"data.pool": f"files-{hash_of('bc'[seed])}"}
        edit(write_run(tmp_path, "d2000", 2_000, seed=seed), inputs=base | pool)
    cells, compared = labels(tmp_path)
    assert cells == ["d1000", "d2000 data.pool=files-bbbbbbbb", "d2000 data.pool=files-cccccccc"]
    assert [b for _, b in compared] == ["d1000", "d1000", "d2000 data.pool=files-bbbbbbbb"]


def test_missing_seeds_are_expected_where_they_belong(tmp_path):
    folders = write_table(tmp_path / "sizes")
    ranks = [write_run(tmp_path / "ranks", seed=seed, settings={"lora.r": rank}) for rank in (4, 8) for seed in (0, 1)]
    for folder in (folders[1], folders[5], ranks[0]):
        edit(folder, status="running")
    for name, expected in (("sizes", [3, 3, 3]), ("ranks", [2, 2])):
        found = read_sweep(tmp_path / name)
        assert [expected_seeds(cell, found.missing) for cell in group(found)[0]] == expected
