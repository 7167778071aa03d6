"""Settings that a mix does not use: in a sweep no error and no part of its identity, in a single run an error."""

import pytest

from tests.config.conftest import config_of, problems_of, sweep_of
from tometune.config.data import ScorerConfig
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
        (("+sweep=random_vs_best",), ("data.scorer.kind=fineweb_edu",), [False, False, True, False, False]),
        (("+sweep=random_vs_best", *TOP), ("data.scorer.kind=column",), [False, False, True]),
        (("-m", "+sweep=table", *FILES), (), [False, False, False]),
        (("+sweep=table", *FILES), ("data.pool.weights.a=0.5", "data.pool.caps.b=9"), [False, True, True]),
        (("+sweep=table_pydocs",), FILTERS, [False, True, True]),
    ],
)
def test_a_setting_changes_the_runs_of_a_sweep_that_use_it(sweep, settings, changed):
    configs, others = sweep_of(*sweep, *settings, "seed=0"), sweep_of(*sweep, "seed=0")
    assert [config.data.pool is not None for config in configs] == [False, *[True] * (len(changed) - 1)]
    assert [mine != other for mine, other in zip(hashes(configs), hashes(others), strict=True)] == changed
    if "scorer" in str(settings):
        assert [config.data.scorer != ScorerConfig() for config in configs] == changed


def test_for_a_single_mix_it_is_an_error_unless_the_base_is_given_a_pool():
    (problem,) = problems_of("data=files_100k", *PATHS)
    assert problem.startswith("data.pool.path: files_100k draws no rows from a pool; choose")
    (problem,) = problems_of("data=pydocs_3k", "data.scorer.kind=column")
    assert problem.startswith("data.scorer: has no effect, since the pool is not ranked")
    config = config_of("data=files_100k", *PATHS, "data.base.rows=7", "data.pool.draw=true")
    assert config.data.pool is not None
    assert (config.data.rows, config.data.base.rows, config.data.pool.path) == (100_000, 7, "pool.jsonl")


def test_without_an_adapter_its_other_settings_do_not_count():
    configs = sweep_of("-m", "model=tiny", "lora=none,default", "lora.r=8,16")
    assert (len(configs), len(set(hashes(configs)))) == (4, 3)
    assert {config.lora.r for config in configs if not config.lora.enabled} == {LoraConfig().r}
