"""The arms of sweeps over sources and sizes, as Hydra composes them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.config.conftest import sweep_of
from tests.data.conftest import conversation, error_of, write_jsonl
from tometune.common.errors import ConfigError
from tometune.config.command_line import parse, read_command_line
from tometune.config.sweep_cells import arm_name, jobs_of, log_sizes
from tometune.runs.inputs import file_mix
from tometune.sweep.arms import added_rows, source_arms

SOURCES = {"it's \\odd": 30, "a/b": 20, "c": 10, **{f"small {n}": 2 for n in range(6)}}


@pytest.fixture
def root(tmp_path: Path) -> DictConfig:
    """The part of a config from which the arms follow: a base of 20 rows, a pool of 72, and a mix of both."""
    rows = (conversation(f"{name} {n}", source=name) for name, count in SOURCES.items() for n in range(count))
    pool = {"kind": "files", "path": str(write_jsonl(tmp_path / "pool.jsonl", rows))}
    base = {"kind": "files", "path": str(write_jsonl(tmp_path / "base.jsonl", map(conversation, range(20))))}
    data = {"name": "mix", "rows": 32, "base": {**base, "rows": 20}, "pool": pool}
    sweep = {"sources": [], "add": [50, 72, 73]}
    return OmegaConf.create({"data": data, "sweep": sweep, "paths": {"cache": str(tmp_path / "cache")}})


def command(root: DictConfig, sweep: str) -> list[str]:
    paths = (f"data.base.path={root.data.base.path}", f"data.pool.path={root.data.pool.path}")
    mix = ("data=files_300k", "data.rows=32", "data.base.rows=20", *paths)
    return [f"+sweep={sweep}", "seed=0", *mix, f"paths.cache={root.paths.cache}"]


def arms(root: DictConfig, key: str, *changes: str) -> list[list[str]]:
    """Return the sources of each arm, as Hydra reads them."""
    text = source_arms(key, OmegaConf.merge(root, OmegaConf.from_dotlist([*changes])))
    (override,) = parse([f"data.pool.{key}={text}"])
    return [[getattr(name, "text", name) for name in group] for group in override.sweep_iterator()]


def test_each_of_the_largest_sources_is_left_out_once(root):
    jobs = jobs_of(read_command_line(command(root, "leave_one_source_out")))
    found = {job.config.data.name: job.config.data.pool.without for job in jobs.known}
    names = [*SOURCES]
    assert list(found.values()) == [[], *([name] for name in names[:7]), names[7:]]
    assert list(found)[:3] == ["all-sources", "without-it-s-odd", "without-a-b"]
    assert list(found)[-1] == "without-others"
    assert json.loads(json.dumps([job.overrides[0] for job in jobs.known]))[0] == "data.pool.without=[]"
    assert [*map(len, arms(root, "without", "sweep.sources=[c,a/b]"))] == [0, 1, 1, 7]


def test_a_source_with_too_few_rows_is_added_with_the_others_only(root):
    others = [name for name, rows in SOURCES.items() if rows < 12]
    assert {config.data.name: config.data.pool.only for config in sweep_of(*command(root, "add_one_source"))} == {
        **{"plus-all-sources": [], "plus-it-s-odd": ["it's \\odd"], "plus-a-b": ["a/b"], "plus-others": others}
    }


@pytest.mark.parametrize(
    ("key", "changes", "dropped", "left"),
    [
        ("without", ["data.rows=67"], ["it's \\odd: 42"], 8),
        ("without", ["data.rows=64", "data.held_out.rows=10"], ["it's \\odd: 28", "a/b: 36"], 7),
        ("only", ["data.rows=45", "sweep.sources=[a/b,c]"], ["a/b: 20", "c: 10"], 2),
        ("only", ["data.rows=40", "data.base.rows=null"], [], 4),
    ],
)
def test_an_arm_without_enough_rows_is_left_out_with_a_line(root, capsys, key, changes, dropped, left):
    assert len(arms(root, key, *changes)) == left
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no arm")]
    starts = [line.partition(" rows to draw from, and the mix needs ")[0] for line in lines]
    assert starts == [f"no arm for {text}" for text in dropped]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            ["data.rows=5000"],
            "data.rows=5000: no arm has enough rows to draw, so there is nothing to compare; set",
        ),
        (["sweep.sources=[smal 1]"], "sweep.sources: smal 1: the pool has no such source; did you mean small 1?"),
        (["data.pool=null"], "data.pool.without: the sweep varies the sources of the pool, and this mix draws no rows"),
        (["data.rows=20"], "data.rows=20: the base fills the mix, so no source is drawn; set data.base.rows=…"),
        (["data.pool.path=${data.base.path}"], "data.pool: all its rows are from one source (files); a sweep over so"),
        (
            ["data.pool.path=null", "data.pool.kind=hub", "data.pool.id=arcee-ai/The-Tome"],
            "data.pool.id=arcee-ai/The-Tome: its sources are not known yet; run tometune prepare with this data first, "
            "or name them with sweep.sources=[…]",
        ),
    ],
)
def test_wrong_input_is_one_line(root, changes, problem, monkeypatch):
    monkeypatch.setattr("tometune.data.sources.pinned", lambda *_: "0" * 40)
    assert error_of(arms, root, "without", *changes).startswith(problem)


def test_sizes_are_nested_and_start_inside_the_base():
    configs = sweep_of("+sweep=sizes_pydocs", "seed=0")
    assert [(config.data.name, config.data.rows) for config in configs] == [
        (f"rows-{rows}", rows) for rows in (100, 300, 1000, 3000)
    ]
    assert {config.data.base.rows for config in configs} == {None}
    assert log_sizes(1000, 300_000) == "1000,3000,10000,30000,100000,300000"
    assert log_sizes(1000, 500) == "500"
    assert arm_name("all", "without", ["«»"]) == "without-unnamed"


def test_one_number_of_rows_does_not_replace_the_sizes_of_a_preset():
    same = "data.rows=500: would give all mixes of {} the same size; {}"
    for name, fix in (
        ("sizes", "set sweep.largest=500, and"),
        ("capacity", "choose the mixes with"),
        ("same_steps_pydocs", "choose the mixes with"),
    ):
        problem = error_of(sweep_of, f"+sweep={name}", "data.rows=500", kind=ConfigError)
        assert problem.startswith(same.format(name, fix))
    assert len(sweep_of("+sweep=same_steps_pydocs", "data=pydocs_3k", "data.rows=1000,2000", "seed=0")) == 2


@pytest.mark.parametrize(
    ("name", "key", "values", "cells"),
    [
        pytest.param("capacity", "lora.r", {8, 16, 32, 64, 128, 256}, 12, marks=pytest.mark.nightly),
        pytest.param("rates", "trainer.learning_rate", {1e-4, 2e-4, 4e-4}, 9, marks=pytest.mark.nightly),
        ("same_steps", "trainer.max_tokens", {40_000_000}, 3),
        ("random_vs_best", "data.pool.order", {None, "random", "best", "longest", "ifd"}, 5),
    ],
)
def test_presets(name, key, values, cells):
    configs = sweep_of(f"+sweep={name}", "seed=0")
    assert all(config.sweep.design and config.report.primary for config in configs)
    assert len(configs) == cells
    assert {OmegaConf.select(OmegaConf.structured(config), key) for config in configs} == values


def test_does_it_help_has_an_arm_for_each_amount_that_the_pool_has(root, capsys, monkeypatch):
    base, pool = root.data.base.path, root.data.pool.path
    chosen = [f"data.path={base}", f"data.pool.path={pool}", "sweep.add=[50,72,73]", f"paths.cache={root.paths.cache}"]
    configs = sweep_of("+sweep=does_it_help", *chosen, "seed=0")
    names = {"base_20": None, "base_20_plus_50": 50, "base_20_plus_72": 72}
    assert {config.data.name: config.data.pool and config.data.pool.add for config in configs} == names
    assert {config.sweep.name for config in configs} == {"does_it_help_base"}
    assert configs[0].report.primary == [">base_20:rougeL", ">base_20:nll"]
    assert f"{pool} has 72 rows that {base} lacks, so no arm adds 73" in capsys.readouterr().err
    problem = f"sweep.add=[100]: {pool} has 72 rows that {base} lacks; set e.g. sweep.add=[72]"
    assert error_of(sweep_of, "+sweep=does_it_help", *chosen, "sweep.add=[100]", kind=ConfigError).startswith(problem)
    root.data.pool.path = "none.jsonl"
    assert error_of(added_rows, root).startswith("data.pool.path=none.jsonl: no such file")
    monkeypatch.setattr("tometune.data.sources.pinned", lambda *_: "0" * 40)
    root.data.pool = {"kind": "hub", "id": "someone/data"}
    assert added_rows(root) == "0,50,72,73", "the size of a hub dataset is known once it was read"


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
