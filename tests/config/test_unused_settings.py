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


def hashes(configs: list[Config]) -> list[str]:
    return [content_hash(identity(config, {})) for config in configs]


@pytest.mark.parametrize(
    ("line", "pools"),
    [
        (("+sweep=random_vs_best", "data.scorer.kind=fineweb_edu"), [False, True, True]),
        (("+sweep=random_vs_best", "data.scorer.kind=column", *TOP), [False, True, True]),
        (("-m", "+sweep=table", *FILES), [False, True, True]),
        (("+sweep=table", *FILES, "data.pool.weights.a=0.5", "data.pool.caps.b=9"), [False, True, True]),
        (("+sweep=table_pydocs", "data.filters.refusals=true", "data.near_dedup.threshold=0.8"), [False, True, True]),
    ],
)
def test_documented_sweeps_compose_and_each_run_is_the_same_as_alone(line, pools):
    configs = sweep_of(*line, "seed=0")
    assert [config.data.pool is not None for config in configs] == pools
    shared = [text for text in line if "path" in text or text.startswith(("+", "-m", "data="))]
    others = hashes(sweep_of(*shared, "seed=0"))
    same = [mine == other for mine, other in zip(hashes(configs), others, strict=True)]
    assert same[0], "the base alone reads none of it"
    ranked = [config.data.pool is not None and config.data.pool.order is PoolOrder.best for config in configs]
    if any("scorer" in text for text in line):
        assert same == [not best for best in ranked]
        assert [config.data.scorer == ScorerConfig() for config in configs] == same
    elif any("refusals" in text or "weights" in text for text in line):
        assert same == [True, False, False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=files_100k", *PATHS], "data.pool.path: files_100k draws no rows from a pool; choose"),
        (["data=pydocs_3k", "data.scorer.kind=column"], "data.scorer: has no effect, since the pool is not ranked"),
        (["data=pydocs_1k", "data.filters.refusals=true"], "data.filters: has no effect, since there is no pool"),
    ],
)
def test_for_a_single_mix_it_is_an_error(overrides, message):
    (problem,) = problems_of(*overrides)
    assert problem.startswith(message)


def test_without_an_adapter_its_other_settings_do_not_count():
    configs = sweep_of("-m", "model=tiny", "lora=none,default", "lora.r=8,16")
    assert len(hashes(configs)) == 4
    assert len(set(hashes(configs))) == 3, "r is an adapter's"
    assert {config.lora.r for config in configs if not config.lora.enabled} == {LoraConfig().r}


def test_a_base_alone_can_be_given_a_pool():
    config = config_of("data=files_100k", *PATHS, "data.base.rows=7", "data.pool.draw=true")
    assert config.data.pool is not None
    assert (config.data.rows, config.data.base.rows, config.data.pool.path) == (100_000, 7, "pool.jsonl")


def test_a_column_of_scores_counts_where_rows_go_by_it():
    plain, named = Config(), Config()
    plain.data.pool, named.data.pool = PoolConfig(), PoolConfig(score="quality")
    named.data.base.score = "quality"
    assert hashes([named]) == hashes([plain])
    for config in (plain, named):
        config.data.filters = FiltersConfig(min_score=3)
    assert "quality" in str(identity(named, {})["data"]["pool"])
    assert "score" not in identity(named, {})["data"]["base"]
    for config in (plain, named):
        config.data.filters, config.data.scorer = FiltersConfig(), ScorerConfig(kind=ScorerKind.column)
        config.data.pool.order = PoolOrder.best
    assert hashes([named]) != hashes([plain])
