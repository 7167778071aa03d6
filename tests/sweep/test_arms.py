"""The arms of sweeps over sources and sizes, as Hydra composes them."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tests.config.conftest import sweep_of
from tests.data.conftest import conversation, write_jsonl
from tometune.common.errors import ConfigError
from tometune.config.sweep_cells import arm_name, log_sizes
from tometune.runs.inputs import file_mix

SOURCES = {"it's \\odd": 30, "a/b": 20, "c": 10, **{f"small {n}": 2 for n in range(6)}}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TOMETUNE_CACHE", str(tmp_path / "cache"))
    rows = (conversation(f"{name} {n}", source=name) for name, count in SOURCES.items() for n in range(count))
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    base = write_jsonl(tmp_path / "base.jsonl", map(conversation, range(20)))
    sizes = ["data.rows=32", "data.base.rows=20"]
    return ["data=files_300k", f"data.base.path={base}", f"data.pool.path={pool}", *sizes, "seed=0"]


def arms(*arguments: str) -> dict[str, list[str]]:
    pools = {config.data.name: config.data.pool for config in sweep_of(*arguments)}
    return {name: pool.only or pool.without for name, pool in pools.items() if pool is not None}


def test_each_of_the_largest_sources_is_left_out_once(data):
    found = arms("+sweep=leave_one_source_out", *data)
    names = [*SOURCES]
    assert list(found.values()) == [[], *([name] for name in names[:7]), names[7:]]
    assert list(found)[:3] == ["all-sources", "without-it-s-odd", "without-a-b"]
    assert list(found)[-1] == "without-others"


def test_a_source_with_too_few_rows_is_added_with_the_others_only(data):
    found = arms("+sweep=add_one_source", *data)
    others = [name for name, rows in SOURCES.items() if rows < 12]
    assert found == {
        "plus-all-sources": [],
        "plus-it-s-odd": ["it's \\odd"],
        "plus-a-b": ["a/b"],
        "plus-others": others,
    }


@pytest.mark.parametrize(
    ("sweep", "changes", "dropped"),
    [
        ("leave_one_source_out", ["data.rows=67"], ["it's \\odd: 42"]),
        ("leave_one_source_out", ["data.rows=64", "data.held_out.rows=10"], ["it's \\odd: 28", "a/b: 36"]),
        ("add_one_source", ["data.rows=45", "sweep.sources=[a/b,c]"], ["a/b: 20", "c: 10"]),
        ("add_one_source", ["data.rows=40", "data.base.rows=null"], []),
    ],
)
def test_an_arm_without_enough_rows_is_left_out_with_a_line(data, capsys, sweep, changes, dropped):
    keys = {text.partition("=")[0] for text in changes}
    found = arms(f"+sweep={sweep}", *(text for text in data if text.partition("=")[0] not in keys), *changes)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no arm for ")]
    assert [line.removeprefix("no arm for ")[: len(text)] for line, text in zip(lines, dropped, strict=True)] == dropped
    assert all(" rows to draw from, and the mix needs " in line for line in lines)
    named = sum(not line.startswith("the ") for line in dropped)
    assert len(found) == {"leave_one_source_out": 9, "add_one_source": 4}[sweep] - named


def test_a_sweep_without_any_arm_is_an_error(data):
    with pytest.raises(
        ConfigError, match=r"data\.rows=5000: no arm has enough rows to draw, so there is nothing to compare"
    ):
        arms("+sweep=leave_one_source_out", *(text for text in data if "data.rows" not in text), "data.rows=5000")


def test_named_sources_and_the_others(data):
    found = arms("+sweep=leave_one_source_out", *data, "sweep.sources=[c,a/b]")
    assert [*map(len, found.values())] == [0, 1, 1, 7]
    assert found["without-c"] == ["c"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["sweep.sources=[smal 1]"], r"sweep\.sources: smal 1: the pool has no such source; did you mean small 1\?"),
        (["data=files_100k"], r"data\.pool\.without: .*draws no rows from one; choose a mix that does"),
        (
            ["data.pool.path={base}"],
            r"data\.pool: all its rows are from one source \(files\); .* needs a column source",
        ),
        (
            ["data=mix_300k", "data.pool.path=null", "data.base.path=null"],
            r"data\.pool\.id=arcee-ai/The-Tome: its sources are not known yet; run .*prepare .* or name them with",
        ),
    ],
)
def test_wrong_input_is_one_line(data, changes, problem, monkeypatch):
    monkeypatch.setattr("tometune.data.sources.pinned", lambda *_: "0" * 40)
    base = data[1].partition("=")[2]
    replaced = {text.partition("=")[0] for text in changes}
    kept = [text for text in data if text.partition("=")[0] not in replaced]
    with pytest.raises(ConfigError, match=problem) as caught:
        sweep_of("+sweep=leave_one_source_out", *kept, *(text.format(base=base) for text in changes))
    assert "\n" not in str(caught.value)


def test_sizes_are_nested_and_start_inside_the_base():
    configs = sweep_of("+sweep=sizes_pydocs", "seed=0")
    assert [(config.data.name, config.data.rows) for config in configs] == [
        (f"rows-{rows}", rows) for rows in (100, 300, 1000, 3000)
    ]
    assert {config.data.base.rows for config in configs} == {None}
    assert log_sizes(1000, 300_000) == "1000,3000,10000,30000,100000,300000"
    assert log_sizes(1000, 500) == "500"
    assert arm_name("all", "without", ["«»"]) == "without-unnamed"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["+sweep=sizes"], "data.rows=500: would give all mixes of sizes the same size; set sweep.largest=500, and"),
        (["+sweep=capacity"], "data.rows=500: would give all mixes of capacity the same size; choose the mixes with"),
        (["+sweep=same_steps_pydocs"], "data.rows=500: would give all mixes of same_steps_pydocs the same size; choo"),
    ],
)
def test_one_number_of_rows_does_not_replace_the_sizes_of_a_preset(arguments, problem):
    with pytest.raises(ConfigError) as error:
        sweep_of(*arguments, "data.rows=500")
    assert str(error.value).startswith(problem)
    assert len(sweep_of(*arguments, "data=pydocs_3k", "data.rows=1000,2000", "seed=0")) > 1


@pytest.mark.parametrize(
    ("name", "key", "values", "cells"),
    [
        pytest.param("capacity", "lora.r", {8, 16, 32, 64, 128, 256}, 12, marks=pytest.mark.nightly),
        pytest.param("rates", "trainer.learning_rate", {1e-4, 2e-4, 4e-4}, 9, marks=pytest.mark.nightly),
        ("same_steps", "trainer.max_tokens", {40_000_000}, 3),
        ("random_vs_best", "data.pool", None, 5),
    ],
)
def test_presets(name, key, values, cells):
    configs = sweep_of(f"+sweep={name}", "seed=0,1")
    assert Counter(config.seed for config in configs) == {0: cells, 1: cells}
    assert all(config.sweep.design and config.report.primary for config in configs)
    group, _, field = key.partition(".")
    if values is not None:
        assert {getattr(getattr(config, group), field) for config in configs} == values
    else:
        orders = [config.data.pool and str(config.data.pool.order) for config in configs if config.seed == 0]
        assert orders == [None, "random", "best", "longest", "ifd"]


def test_does_it_help_has_an_arm_for_each_amount_that_the_pool_has(data, capsys, monkeypatch):
    base, pool = data[1].partition("=")[2], data[2].partition("=")[2]
    chosen = ["+sweep=does_it_help", f"data.path={base}", f"data.pool.path={pool}"]
    configs = sweep_of(*chosen, "sweep.add=[50,72,73]", "seed=0,1")
    assert Counter(config.data.name for config in configs) == {"base_20": 2, "base_20_plus_50": 2, "base_20_plus_72": 2}
    assert {config.sweep.name for config in configs} == {"does_it_help_base"}
    assert configs[0].report.primary == [">base_20:rougeL", ">base_20:nll"]
    assert [config.data.pool and config.data.pool.add for config in configs[::2]] == [None, 50, 72]
    assert f"{pool} has 72 rows that {base} lacks, so no arm adds 73" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"sweep\.add=\[100\]: .*72 rows that .* lacks; set e\.g\. sweep\.add=\[72\]"):
        sweep_of(*chosen, "sweep.add=[100]")
    with pytest.raises(ConfigError, match=r"data\.pool\.path=none\.jsonl: no such file"):
        sweep_of(*chosen[:2], "data.pool.path=none.jsonl")
    monkeypatch.setattr("tometune.data.sources.pinned", lambda *_: "0" * 40)
    hub = sweep_of(*chosen[:2], "seed=0")
    assert [config.data.name for config in hub] == ["base_20", *(f"base_20_plus_{n}" for n in ("1k", "10k", "100k"))]


@pytest.mark.parametrize(
    ("path", "rows", "added", "name"),
    [
        ("a/My file, v2.jsonl.gz", 3, None, "My-file-v2_3"),
        ("mine.jsonl", 4_000, None, "mine_4k"),
        ("mine.jsonl", 4_249, 1_500_000, "mine_4.2k_plus_1.5m"),
        ("*.jsonl", 99_999, 950, "mine_100k_plus_950"),
    ],
)
def test_a_mix_over_a_file_is_named_after_it(path, rows, added, name, monkeypatch):
    monkeypatch.setattr("tometune.data.standardise.standardise", lambda *_: SimpleNamespace(rows=range(rows)))
    config = {"data": {"base": {"path": path}, "rows": None}, "paths": {"cache": "x"}}
    assert file_mix(added, OmegaConf.create(config)) == name


def test_the_overrides_of_an_arm_are_kept_in_json(data):
    from tometune.config.command_line import read_command_line
    from tometune.config.sweep_cells import jobs_of

    jobs = jobs_of(read_command_line(["+sweep=leave_one_source_out", *data]))
    assert json.loads(json.dumps([job.overrides[0] for job in jobs.known]))[0] == "data.pool.without=[]"
