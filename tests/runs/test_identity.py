"""The hash of a run covers everything that can change its result, and nothing else. (Run ids: tests/golden.)"""

from dataclasses import replace

import pytest

from tometune.config.data import Contamination, FiltersConfig, PoolConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.config.eval import EngineKind
from tometune.config.model import Precision
from tometune.config.root import Config
from tometune.runs.identity import MEANING, content_hash, identity
from tometune.runs.run import name_of

INPUTS = {"model": "a", "data.base": "b"}


@pytest.mark.parametrize(
    ("group", "key", "value", "changes"),
    [
        ("trainer", "learning_rate", 1e-3, True),
        ("trainer", "save_steps", 3, False),
        ("lora", "r", 8, True),
        ("lora", "enabled", False, True),
        ("seeds", "data", 7, True),
        ("data", "contamination", Contamination.drop, True),
        ("data", "contamination", Contamination.fail, False),
        ("eval", "limit", 5, True),
        ("eval", "batch_size", 5, True),
        ("eval", "engine", EngineKind.transformers, True),
        ("tracking", "project", "x", False),
        ("paths", "cache", "x", False),
    ],
)
def test_the_hash_covers_what_can_change_the_result(group: str, key: str, value: object, changes: bool) -> None:
    before, after = Config(), Config()
    setattr(getattr(after, group), key, value)
    assert (content_hash(identity(before, INPUTS)) != content_hash(identity(after, INPUTS))) is changes


def test_the_hash_covers_the_content_of_inputs_and_not_their_place() -> None:
    here, there = Config(), Config()
    here.data.base.path, there.data.base.path = "a.parquet", "b/a.parquet"
    assert identity(here, INPUTS) == identity(there, INPUTS)
    assert identity(here, INPUTS) != identity(here, INPUTS | {"data.base": "other"})
    assert identity(here, INPUTS)["meaning"] == MEANING


def test_a_setting_that_came_later_counts_once_it_is_set() -> None:
    """At its default a run is still the run that it was before there was the setting."""
    config = Config()
    config.data.pool = PoolConfig()
    before = identity(config, INPUTS)
    assert not {"filters", "near_dedup", "scorer", "contamination"} & set(before["data"])
    assert not {"weights", "caps", "order"} & set(before["data"]["pool"])
    assert "enabled" not in before["lora"]
    config.data.filters.max_turns = 4
    config.data.pool.weights["a"] = 0.5
    after = identity(config, INPUTS)["data"]
    assert (after["filters"]["max_turns"], after["pool"]["weights"]) == (4, {"a": 0.5})


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
def test_a_column_of_scores_counts_where_rows_are_filtered_or_ranked_by_it(settings, in_base, in_pool) -> None:
    config = Config()
    config.data.base.score = "quality"
    config.data.pool = PoolConfig(score="quality", order=PoolOrder.best if "scorer" in settings else PoolOrder.random)
    vars(config.data).update(settings)
    data = identity(config, {})["data"]
    assert ("score" in data["base"], "score" in data["pool"]) == (in_base, in_pool)


def test_auto_precision_is_the_precision_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    ids = {}
    for resolved in ("bf16", "fp16", "fp32"):
        monkeypatch.setattr("tometune.models.precision.auto_precision", lambda resolved=resolved: Precision(resolved))
        ids[resolved] = name_of(config, INPUTS)[0]
        explicit = replace(config, model=replace(config.model, precision=Precision(resolved)))
        assert name_of(explicit, INPUTS)[0] == ids[resolved]
    assert len(set(ids.values())) == 3
