"""Settings that a mix does not use: in a sweep no error and no part of its identity, in a single run an error."""

import pytest

from tests.config.conftest import config_of, problems_of, sweep_of
from tometune.config.data import FiltersConfig, PoolConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.config.model import LoraConfig
from tometune.config.root import Config
from tometune.runs.identity import content_hash, identity

PATHS = ("data.base.path=base.jsonl", "data.pool.path=pool.jsonl")
FILES = ("data=files_100k,files_200k,files_300k", *PATHS)
TOP = ("data=files_100k,files_300k,files_300k_top", *PATHS)
FILTERS = ("data.filters.refusals=true", "data.near_dedup.threshold=0.8")


def hashes(configs: list[Config]) -> list[str]:
    return [content_hash(identity(config, {})) for config in configs]


@pytest.mark.parametrize(
    ("sweep", "settings", "changed"),
    [
        (("+sweep=random_vs_best",), ("data.scorer.kind=fineweb_edu",), [False, False, True]),
        (("+sweep=random_vs_best", *TOP), ("data.scorer.kind=column",), [False, False, True]),
        (("-m", "+sweep=table", *FILES), (), [False, False, False]),
        (("+sweep=table", *FILES), ("data.pool.weights.a=0.5", "data.pool.caps.b=9"), [False, True, True]),
        (("+sweep=table_pydocs",), FILTERS, [False, True, True]),
    ],
)
def test_a_setting_changes_the_runs_of_a_sweep_that_use_it(sweep, settings, changed):
    configs, others = sweep_of(*sweep, *settings, "seed=0"), sweep_of(*sweep, "seed=0")
    assert [config.data.pool is not None for config in configs] == [False, True, True]
    assert [mine != other for mine, other in zip(hashes(configs), hashes(others), strict=True)] == changed
    if "scorer" in str(settings):
        assert [config.data.scorer != ScorerConfig() for config in configs] == changed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=files_100k", *PATHS], "data.pool.path: files_100k draws no rows from a pool; choose"),
        (["data=pydocs_3k", "data.scorer.kind=column"], "data.scorer: has no effect, since the pool is not ranked"),
    ],
)
def test_for_a_single_mix_it_is_an_error(overrides, message):
    (problem,) = problems_of(*overrides)
    assert problem.startswith(message)


def test_without_an_adapter_its_other_settings_do_not_count():
    configs = sweep_of("-m", "model=tiny", "lora=none,default", "lora.r=8,16")
    assert (len(configs), len(set(hashes(configs)))) == (4, 3)
    assert {config.lora.r for config in configs if not config.lora.enabled} == {LoraConfig().r}


def test_a_base_alone_can_be_given_a_pool():
    config = config_of("data=files_100k", *PATHS, "data.base.rows=7", "data.pool.draw=true")
    assert config.data.pool is not None
    assert (config.data.rows, config.data.base.rows, config.data.pool.path) == (100_000, 7, "pool.jsonl")


@pytest.mark.parametrize(
    ("settings", "in_base", "in_pool"),
    [
        ({}, False, False),
        ({"filters": FiltersConfig(min_score=3)}, False, True),
        ({"filters": FiltersConfig(min_score=3, base=True)}, True, True),
        ({"scorer": ScorerConfig(kind=ScorerKind.column)}, False, True),
        ({"scorer": ScorerConfig(kind=ScorerKind.heuristic)}, False, False),
    ],
)
def test_a_column_of_scores_counts_where_rows_are_filtered_or_ranked_by_it(settings, in_base, in_pool):
    config = Config()
    config.data.base.score = "quality"
    config.data.pool = PoolConfig(score="quality", order=PoolOrder.best if "scorer" in settings else PoolOrder.random)
    vars(config.data).update(settings)
    data = identity(config, {})["data"]
    assert ("score" in data["base"], "score" in data["pool"]) == (in_base, in_pool)
