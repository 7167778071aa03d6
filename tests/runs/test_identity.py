"""What a run's hash covers. tests/golden/run_ids.txt has the ids of 40 command lines, and what they are made of."""

from dataclasses import replace
from functools import reduce

import pytest
from omegaconf import OmegaConf

from tometune.common.files import write_text
from tometune.config.data import (
    Contamination,
    DataConfig,
    FiltersConfig,
    HeldOutConfig,
    PoolConfig,
    PoolOrder,
    ScorerConfig,
    ScorerKind,
)
from tometune.config.eval import EvalConfig
from tometune.config.model import Backend, ModelConfig, Precision, Weights
from tometune.config.root import Config
from tometune.runs.identity import MEANING, content_hash, identity, plain
from tometune.runs.inputs import evaluation_fingerprints
from tometune.runs.run import DamageError, name_of
from tometune.runs.stored import config_of

INPUTS = {"model": "a", "data.base": "b"}


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("trainer.learning_rate", 1e-3, True),
        ("data.contamination", Contamination.drop, True),
        ("data.contamination", Contamination.fail, False),
        ("lora.enabled", False, True),
        ("data.base.path", "elsewhere.parquet", False),
        ("paths.cache", "x", False),
        ("eval.judge.url", "http://localhost:8080/v1", False),
    ],
)
def test_the_hash_covers_what_can_change_the_result(key, value, changes):
    before, after = Config(), Config()
    *groups, name = key.split(".")
    setattr(reduce(getattr, groups, after), name, value)
    assert (content_hash(identity(before, INPUTS)) != content_hash(identity(after, INPUTS))) is changes
    assert identity(before, INPUTS) != identity(before, INPUTS | {"data.base": "other"})


def test_tasks_of_the_harness_are_inputs(tmp_path):
    """Named tasks by their name, files by their content; without any, the inputs are those of earlier versions."""
    model = ModelConfig(id="tiny", weights=Weights.random)
    task, other = tmp_path / "task.yaml", tmp_path / "other" / "task.yaml"
    other.parent.mkdir()
    for path in (task, other):
        path.write_text("task: mine")
    found = [evaluation_fingerprints(model, EvalConfig(harness=names)) for names in ([], ["gsm8k"], [str(task)])]
    assert list(found[0]) == ["model"]
    assert found[1] == found[0] | {"eval.harness.gsm8k": "lm_eval"}
    assert evaluation_fingerprints(model, EvalConfig(harness=[str(other)])) == found[2] != found[1]
    both = evaluation_fingerprints(model, EvalConfig(harness=[str(task), "task"]))
    assert len(both) == 3, "a file and a task of the package with its name"
    task.write_text("task: mine\nversion: 2")
    assert evaluation_fingerprints(model, EvalConfig(harness=[str(task)])) != found[2]
    configs = [Config(eval=EvalConfig(harness=names)) for names in ([], ["gsm8k"])]
    assert identity(configs[0], found[0]) == identity(configs[1], found[0]) != identity(configs[1], found[1])


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


@pytest.mark.parametrize(("rows", "held_out", "changes"), [(None, 50, True), (2000, 50, False), (None, 0, True)])
def test_drawing_from_a_pool_counts_where_it_decides_what_is_in_the_mix(rows, held_out, changes):
    """Without `data.rows`; a pool that rows are held out of stays in the config if none are drawn from it."""
    pools = [PoolConfig(id="a/b", draw=draw) for draw in (False, True)]
    configs = [Config(data=DataConfig(rows=rows, pool=pool, held_out=HeldOutConfig(rows=held_out))) for pool in pools]
    first, second = (content_hash(identity(config, INPUTS)) for config in configs)
    assert (first != second) is changes


def test_auto_precision_is_the_precision_of_this_machine(monkeypatch):
    config = Config()
    ids = {}
    for resolved in ("bf16", "fp16", "fp32"):
        monkeypatch.setattr("tometune.models.machine.auto_precision", lambda resolved=resolved: Precision(resolved))
        ids[resolved] = name_of(config, INPUTS)[0]
        explicit = replace(config, model=replace(config.model, precision=Precision(resolved)))
        assert name_of(explicit, INPUTS)[0] == ids[resolved]
    assert len(set(ids.values())) == 3


def test_auto_backend_counts_where_it_no_longer_stands_for_unsloth_and_a_run_made_elsewhere_is_readable(
    monkeypatch, tmp_path
):
    config, ids = Config(), {}
    config.model.precision = Precision.bf16
    monkeypatch.setattr("tometune.models.machine.unsloth_installed", lambda: True)
    for capability in (None, (8, 0), (9, 0)):
        monkeypatch.setattr("tometune.models.machine.gpu_capability", lambda capability=capability: capability)
        ids[capability] = content_hash(identity(config, INPUTS))
    assert ids[None] == ids[8, 0] != ids[9, 0]
    monkeypatch.setattr("tometune.models.machine.processes", lambda: 2)
    assert content_hash(identity(config, INPUTS)) == ids[9, 0], "the number of GPUs does not count"
    explicit = replace(config, model=replace(config.model, backend=Backend.transformers))
    assert content_hash(identity(explicit, INPUTS)) == ids[9, 0]
    monkeypatch.setattr("tometune.models.machine.unsloth_installed", lambda: False)
    assert content_hash(identity(config, INPUTS)) == ids[None], "it always was transformers"
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    for made in ids.values():
        config_of(tmp_path, {"meaning": MEANING, "inputs": INPUTS, "config_hash": made})
    with pytest.raises(DamageError):
        config_of(tmp_path, {"meaning": MEANING, "inputs": INPUTS, "config_hash": "0" * 64})
