"""Checks name the key and the fix, all problems at once. tests/golden/errors.txt has many more of these lines."""

import pytest
import transformers
from transformers.training_args import OptimizerNames

from tests.config.conftest import config_of, problems_of, sweep_of
from tometune.common.errors import ConfigError
from tometune.config.data import ScorerConfig
from tometune.config.metrics import METRICS
from tometune.config.model import LoraConfig
from tometune.config.report import entries
from tometune.config.root import Config, check
from tometune.config.trainer import OPTIMISERS, SCHEDULES
from tometune.evaluation import metrics
from tometune.runs.identity import content_hash, identity

CASES = [
    ("report.margin=0", "report.margin=0.0: not above 0"),
    ("report.primary=rougel", "report.primary=rougel: no such metric; did you mean rougeL"),
    ("report.primary=[rougeL,'a>']", "report.primary=a>: write METRIC, data:METRIC, A>B or A>B:METRIC, e.g. rougeL or"),
    ("report.primary='a>b:rougeL>=0'", "report.primary=a>b:rougeL>=0: write METRIC, data:METRIC, A>B or A>B:METRIC, e"),
    ("require='a>b:rougeL'", "require=a>b:rougeL: write A>B:METRIC>=VALUE or A>B:METRIC<=VALUE, e.g. 'files_300k>"),
    ("require=['>b:rougeL>=0']", "require=>b:rougeL>=0: write A>B:METRIC>=VALUE or"),
    ("require='a>b>=0.1'", "require=a>b>=0.1: write A>B:METRIC>=VALUE or"),
    ("require='a>b:rougeL>=much'", "require=a>b:rougeL>=much: write A>B:METRIC>=VALUE or"),
    ("data.rows=5 data.base.rows=7", "data.rows=5: below data.base.rows=7, and a mix contains the whole base;"),
    ("data.base.rows=7", "data.rows=100000: above data.base.rows=7, and there is no pool; choose a mix with one"),
    ("data=mix_200k data.pool=null", "data.rows=200000: above data.base.rows=100000, and there is no pool"),
    ("data.base.path=x", "data.base.path=x: is ignored if data.base.kind=hub; choose a mix over files"),
    ("data=pydocs_1k data.base.id=a/b", "data.base.id=a/b: is ignored if data.base.kind=pydocs;"),
    ("data.base.filtered=true", "data.base.filtered=true: only data.base.kind=pydocs has a filter;"),
    ("data=mix_200k data.pool.weights={a:0.6,b-2.0:0.6}", "data.pool.weights: their sum is 1.2, above 1; lower them"),
    ("data.path=mine.jsonl", "data.path=mine.jsonl: this mix does not read it; for rows of your own write data=mine"),
    ("data=mine data.path=a data.base.path=b", "data.path=a: is not data.base.path=b; set one of the two"),
    ("data=mine data.path=a data.pool.path=b", "data.pool.path: a draws no rows from a pool; set data.pool.add=1000"),
    ("data=mine data.path=a data.rows=9 data.pool.add=3", "data.pool.add=3: the mix has data.rows=9, whatever is adde"),
    ("data.held_out.seed=3", "data.held_out.seed=3: has no effect, since no rows are held out; set data.held_out"),
    ("data.held_out.rows=100000", "data.held_out.rows=100000: not below data.base.rows=100000, so no row of the"),
    ("+eval/task@eval.tasks.held_out_x=jsonl eval.tasks.held_out_x.path=x", "eval.tasks.held_out_x: names beginning w"),
    ("data=mine data.path=a data.contamination=drop", "data.contamination=drop: eval=held_out has no texts;"),
    ("eval=own", "eval.tasks.own.path is required if eval.tasks.own.kind=jsonl; set eval.path=…, one file"),
    ("eval.path=a", "eval.path=a: eval=hub does not read it; for a test set of your own write eval=own"),
    ("data.base.columns={user:q,assistant:rejected}", "data.base.columns.assistant=rejected: is the rejected side of"),
    ("data.base.columns={usr:q}", "data.base.columns=usr: one of messages, user, context, assistant, reasoning,"),
    ("data=mix_200k data.filters.languages=[english]", "data.filters.languages=english: not a code of ISO 639"),
    ("data.filters.refusals=true", "data.filters: has no effect, since there is no pool to filter; set data.filters"),
    ("model.id='' model.name=x", "model.id: empty; give a hub id or a local folder"),
    ("model.weights=random", "model.quantization=nf4: model.weights=random has nothing to quantise;"),
    ("model.compute=fp8 model.backend=unsloth", "model.compute=fp8: Unsloth has no such products;"),
    (
        "model.compute=fp8_backward model.precision=fp16",
        "model.compute=fp8_backward: is for bfloat16, not model.precision=fp16;",
    ),
    ("model.compute=fp8 lora.use_dora=true", "model.compute=fp8: is for frozen weights, and lora.use_dora=true"),
    ("lora=none model=tiny lora.r=8", "lora.r: is ignored without an adapter; leave it out, or choose lora=default"),
    ("lora.target_modules=[]", "lora.target_modules: empty;"),
    ("trainer.lr_scheduler_type=constant", "trainer.lr_scheduler_type=constant: has no warm-up, so trainer.warmup"),
    ("trainer.warmup_steps=2.5", "trainer.warmup_steps=2.5: neither a whole number of steps nor a share"),
    ("eval.metrics=[token_f]", "eval.metrics=token_f: one of rouge, chrf, bleu, token_f1, exact_match; did you mean t"),
    ("eval.metrics=[gone:f]", "eval.metrics=gone:f: no file gone.py in /"),
    ("eval.judge.url=http://localhost:1/v1", "eval.judge: needs both eval.judge.url=… and eval.judge.model=…; set"),
    ("eval.judge.url=localhost:1 eval.judge.model=m", "eval.judge.url=localhost:1: not an address up to /v1, e.g. htt"),
    ("eval.judge.url=http://me:sk@x eval.judge.model=m", "eval.judge.url=http://me:sk@x: not an address up to /v1, e"),
    ("eval.judge.url=http://x/v1 eval.judge.model=m eval.base=false", "eval.judge.url: compares with the base model's"),
    ("+eval/task@eval.tasks.harness_a=jsonl eval.tasks.harness_a.path=x", "eval.tasks.harness_a: names beginning with"),
    ("trainer.loss_type=dft model.backend=unsloth", "trainer.loss_type=dft: Unsloth has no such loss;"),
    ("trainer.micro_batch=0", "trainer.micro_batch=0: neither auto nor 1 or more"),
    ("trainer.gradient_checkpointing=maybe", "trainer.gradient_checkpointing=maybe: one of auto, true, false"),
    ("trainer.packing=false", "trainer.packing=false: counts steps in conversations; set trainer.conv"),
    ("tracking=none tracking.mode=online", "tracking.mode=online: tracking.tracker=none logs nowhere;"),
    ("paths.cache='~nobody-of-that-name/x'", "paths.cache=~nobody-of-that-name/x: cannot be looked up ("),
    (f"paths.outputs={'x' * 300}", f"paths.outputs={'x' * 300}: cannot be looked up (File name too long); give anoth"),
    ("plan=hours", "plan=hours: one of true, false, measure"),
]


@pytest.mark.parametrize(("overrides", "message"), CASES, ids=[case[0] for case in CASES])
def test_one_problem(overrides, message):
    (problem,) = problems_of(*overrides.split(" "))
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("typed", "entries_read"),
    [
        ("require=a>b:rougeL>=-0.01", ["a>b:rougeL>=-0.01"]),
        ("require=[a>b:rougeL>=-0.01, c x.r=4>d:nll<=1e-3]", ["a>b:rougeL>=-0.01", "c x.r=4>d:nll<=1e-3"]),
        ("require=['a>b:rougeL>=0']", ["a>b:rougeL>=0"]),
        ('require="a>b:rougeL>=0"', ["a>b:rougeL>=0"]),
        ("report.primary=>b", [">b"]),
        ("++report.primary=[rougeL,>b]", ["rougeL", ">b"]),
        ("report.primary=rougeL", ["rougeL"]),
    ],
)
def test_comparisons_need_no_quotes_but_the_shells(typed, entries_read):
    config = config_of(typed)
    assert entries(config.require or config.report.primary) == entries_read


def test_a_column_may_be_called_rejected_if_there_is_no_preference_data():
    assert not problems_of("data.base.columns={user:q,assistant:rejected}", "data.base.preference=ignore")


def test_no_task_and_a_task_without_a_file_name():
    config = config_of()
    task = next(iter(config.eval.tasks.values()))
    config.eval.tasks = {}
    with pytest.raises(ConfigError, match=r"^eval\.tasks: empty; choose eval=hub, eval=files or"):
        check(config)
    config.eval.tasks = {"a b": task}
    with pytest.raises(ConfigError, match=r"^eval\.tasks\.a b=a b: names a folder"):
        check(config)


def test_names_are_those_of_the_libraries():
    assert (*metrics.METRICS, *metrics.MODEL_METRICS) == METRICS
    assert set(OPTIMISERS) <= {name.value for name in OptimizerNames}
    assert set(SCHEDULES) <= {name.value for name in transformers.SchedulerType}


FILES = ("data.base.path=base.jsonl", "data.pool.path=pool.jsonl")


def hashes(configs: list[Config]) -> list[str]:
    return [content_hash(identity(config, {})) for config in configs]


@pytest.mark.parametrize(
    ("mixes", "settings", "changed"),
    [
        ("data=files_100k,files_300k,files_300k_top", ["data.scorer.kind=column"], [False, False, True]),
        ("data=files_100k,files_200k", ["data.pool.weights.a=0.5", "data.pool.caps.b=9"], [False, True]),
        ("data=files_100k,files_200k", ["data.filters.refusals=true", "data.near_dedup.threshold=0.8"], [False, True]),
    ],
)
def test_a_setting_changes_the_runs_of_a_sweep_that_use_it(mixes, settings, changed):
    configs, others = sweep_of("-m", mixes, *FILES, *settings), sweep_of("-m", mixes, *FILES)
    assert [config.data.pool is not None for config in configs] == [False, *[True] * (len(changed) - 1)]
    assert [mine != other for mine, other in zip(hashes(configs), hashes(others), strict=True)] == changed
    if "scorer" in str(settings):
        assert [config.data.scorer != ScorerConfig() for config in configs] == changed


def test_a_base_that_is_given_a_pool_may_have_its_keys():
    config = config_of("data=files_100k", *FILES, "data.base.rows=7", "data.pool.draw=true")
    assert config.data.pool is not None
    assert (config.data.rows, config.data.base.rows, config.data.pool.path) == (100_000, 7, "pool.jsonl")


def test_without_an_adapter_its_other_settings_do_not_count():
    configs = sweep_of("-m", "model=tiny", "lora=none,default", "lora.r=8,16")
    assert (len(configs), len(set(hashes(configs)))) == (4, 3)
    assert {config.lora.r for config in configs if not config.lora.enabled} == {LoraConfig().r}
