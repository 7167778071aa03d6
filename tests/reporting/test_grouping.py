import shutil

import pytest

from tests.reporting.sweeps import edit, write_run, write_table
from tometune.common.errors import UserError
from tometune.reporting.grouping import expected_seeds, group, one_factor, pairs
from tometune.reporting.sweep import read_sweep

RANKS = [{"settings": {"lora.r": rank}} for rank in (8, 16, 4)]
ALPHAS = [{"settings": {"lora.r": rank, "lora.lora_alpha": rank}} for rank in (8, 16, 4)]
TOGETHER = "lora.lora_alpha changes together with lora.r, so the comparisons cover both."
SIZES = [{"data": f"d{rows}", "rows": rows} for rows in (20_000, 3_000)]
MODELS = [{**size, "model": model} for model in ("tiny", "small") for size in SIZES]
BOTH = [{**size, **rank} for size in SIZES for rank in RANKS[1:]]
FULL = [RANKS[0], RANKS[2], {"settings": {"lora.enabled": False, "lora.r": 8}}]
STEPS = [{**size, "settings": {"trainer.max_steps": size["rows"] // 100}} for size in SIZES]
ALL = ["10", "20", "21"]  # of three cells, each with those before it
NOTE = "trainer.max_steps changes together with the data (d3000: 30, d20000: 200), so the comparisons cover both."


def grouped(folder):
    return group(read_sweep(folder))


@pytest.mark.parametrize(
    ("runs", "labels", "compared", "notes"),
    [
        (RANKS, ["pydocs_1k lora.r=4", "pydocs_1k lora.r=8", "pydocs_1k lora.r=16"], ALL, []),
        (ALPHAS, ["pydocs_1k lora.r=4", "pydocs_1k lora.r=8", "pydocs_1k lora.r=16"], ALL, [TOGETHER]),
        (MODELS, ["small d3000", "small d20000", "tiny d3000", "tiny d20000"], ["10", "32"], []),
        (BOTH, [f"d{rows} lora.r={rank}" for rows in (3000, 20000) for rank in (4, 16)], ["10", "20", "31", "32"], []),
        (FULL, ["pydocs_1k lora=adapter lora.r=4", "pydocs_1k lora=adapter lora.r=8", "pydocs_1k lora=full"], ALL, []),
        (STEPS, ["d3000", "d20000"], ["10"], [NOTE]),
        ([{"streams": {"data": value}} for value in (3, 4, 5)], ["pydocs_1k"], [], []),
    ],
    ids=["settings", "together", "models", "two things", "full fine-tuning", "steps", "one stream"],
)
def test_cells_are_labelled_by_what_differs_and_compared_if_one_thing_does(tmp_path, runs, labels, compared, notes):
    for run in runs:
        write_run(tmp_path, **run)
    cells, found_notes = grouped(tmp_path)
    found = [f"{cells.index(a)}{cells.index(b)}" for a, b in pairs(cells)]
    assert ([cell.label for cell in cells], found, found_notes) == (labels, compared, notes)


def test_runs_with_single_streams_set_count_for_the_variance_only(tmp_path):
    streams = [{stream: value} for stream in ("data", "order") for value in (7, 8)]
    for setting in streams:
        write_run(tmp_path, streams=setting)
    with pytest.raises(UserError, match="every run sets single streams"):
        grouped(tmp_path)
    for seed in (0, 1, 2):
        write_run(tmp_path, seed=seed)
    (cell,), notes = grouped(tmp_path)
    assert (list(cell.runs), len(cell.stream_runs)) == ([0, 1, 2], 4)
    groups = {stream: [len(runs) for runs in one_factor(cell, stream)] for stream in ("data", "order", "adapter")}
    assert groups == {"data": [3], "order": [3], "adapter": []}
    assert notes == ["Runs with separately set streams (4) count for the variance by cause only."]


def test_runs_with_the_same_settings_and_seeds_are_rejected(sweep):
    first = sorted(sweep.iterdir())[0]
    twin = first.with_name("tiny-pydocs_1k-s0-ffffffff")
    shutil.copytree(first, twin)
    with pytest.raises(UserError, match=f"{first.name} and {twin.name}: the same settings and seeds"):
        grouped(sweep)


def test_mixes_with_other_rows_for_the_same_seed_are_not_averaged(tmp_path):
    _, second = (write_run(tmp_path, streams={"order": order}) for order in (0, 5))
    edit(second, data={"name": "pydocs_1k", "rows": 1000, "digest": "x"})
    with pytest.raises(UserError, match=r"the same settings and seeds\.data but other rows, so"):
        grouped(tmp_path)


def hash_of(letter):
    return letter * 20


@pytest.mark.parametrize(
    ("change", "label", "note"),
    [
        ({"inputs": {"data.base": f"files-{hash_of('b')}"}}, "data.base=files-bbbbbbbb", "content of data.base"),
        ({"model": {"name": "tiny", "dtype": "bfloat16"}}, "model.dtype=bfloat16", "number format of the model"),
        ({"meaning": 4}, "meaning=4", "version of tometune"),
    ],
)
def test_runs_that_differ_in_more_than_seeds_are_different_cells(tmp_path, change, label, note):
    same = {"inputs": {"data.base": f"files-{hash_of('a')}"}, "model": {"name": "tiny", "dtype": "float32"}}
    for seed in range(3):
        edit(write_run(tmp_path, seed=seed), **{"meaning": 5, **same, **(change if seed == 2 else {})})
    cells, (text,) = grouped(tmp_path)
    assert sorted(list(cell.runs) for cell in cells) == [[0, 1], [2]]
    assert f"pydocs_1k {label}" in [cell.label for cell in cells]
    assert text.startswith(f"The {note}")
    for runs in ("2 runs", "1 run"):
        assert f": {runs}, the last one of 2026-11-24" in text


def test_a_mix_with_another_pool_is_compared_with_the_base_alone(tmp_path):
    base = {"data.base": f"files-{hash_of('a')}"}
    for seed in range(2):
        edit(write_run(tmp_path, "d1000", 1_000, seed=seed), inputs=base)
        pool = {"data.pool": f"files-{hash_of('bc'[seed])}"}
        edit(write_run(tmp_path, "d2000", 2_000, seed=seed), inputs=base | pool)
    found, _ = grouped(tmp_path)
    cells, compared = [cell.label for cell in found], [(a.label, b.label) for a, b in pairs(found)]
    assert cells == ["d1000", "d2000 data.pool=files-bbbbbbbb", "d2000 data.pool=files-cccccccc"]
    assert [b for _, b in compared] == ["d1000", "d1000", "d2000 data.pool=files-bbbbbbbb"]


def test_missing_seeds_are_expected_where_they_belong(tmp_path):
    folders = write_table(tmp_path / "sizes")
    ranks = [write_run(tmp_path / "ranks", seed=seed, **rank) for rank in RANKS[1:] for seed in (0, 1)]
    for folder in (folders[1], folders[5], ranks[0]):
        edit(folder, status="running")
    for name, expected in (("sizes", [3, 3, 3]), ("ranks", [2, 2])):
        found = read_sweep(tmp_path / name)
        assert [expected_seeds(cell, found.missing) for cell in group(found)[0]] == expected
