"""Cross-field checks name the keys and the fix, all at once."""

from pathlib import Path

import pytest
import transformers
from transformers.training_args import OptimizerNames

from tests.config.conftest import config_of, problems_of
from tometune.common.errors import ConfigError
from tometune.config.eval import METRICS
from tometune.config.root import check
from tometune.config.trainer import OPTIMISERS, SCHEDULES
from tometune.evaluation import metrics

MINE = ("+eval/task@eval.tasks.a=jsonl", "eval.tasks.a.path=x")
CASES = [
    (["data.rows=5", "data.base.rows=7"], "data.rows=5: below data.base.rows=7, and a mix contains the whole base;"),
    (["data.base.rows=7"], "data.rows=100000: above data.base.rows=7, and there is no pool; choose a mix with one"),
    (["data=mix_200k", "data.pool=null"], "data.rows=200000: above data.base.rows=100000, and there is no pool"),
    (["data=files_100k"], "data.base.path is required if data.base.kind=files; set data.base.path="),
    (["data=files_200k", "data.base.path=x"], "data.pool.path is required if data.pool.kind=files;"),
    (["data.base.path=x"], "data.base.path=x: is ignored if data.base.kind=hub; choose a mix over files"),
    (["data.base.id=null"], "data.base.id is required if data.base.kind=hub;"),
    (["data=pydocs_1k", "data.base.id=a/b"], "data.base.id=a/b: is ignored if data.base.kind=pydocs;"),
    (["data.base.filtered=true"], "data.base.filtered=true: only data.base.kind=pydocs has a filter;"),
    (["data.rows=0"], "data.rows=0: not 1 or more"),
    (["data.base.rows=0"], "data.base.rows=0: not 1 or more"),
    (["data=mix_200k", "data.pool.rows=0"], "data.pool.rows=0: not 1 or more"),
    (["data.max_bad_share=5"], "data.max_bad_share=5.0: not a share from 0 to 1"),
    (
        ["data.base.columns={usr: q}"],
        "data.base.columns=usr: one of messages, user, context, assistant, reasoning, system,",
    ),
    (["data=mix_200k", "data.pool.weights.x=1.5"], "data.pool.weights.x=1.5: not a share from 0 to 1"),
    (
        ["data=mix_200k", "data.pool.weights={a: 0.6, b-2.0: 0.6}"],
        "data.pool.weights: their sum is 1.2, above 1; lower them",
    ),
    (["data=mix_200k", "data.pool.caps.airoboros-3.2=0"], "data.pool.caps.airoboros-3.2=0: not 1 or more"),
    (["data=mix_200k", "data.filters.max_repetition=2"], "data.filters.max_repetition=2.0: not a share from 0 to 1"),
    (
        ["data=mix_200k", "data.near_dedup.threshold=0.1"],
        "data.near_dedup.threshold=0.1: below 0.5, texts that only share a form",
    ),
    (
        ["data=mix_200k", "data.filters.min_turns=4", "data.filters.max_turns=3"],
        "data.filters.min_turns=4: above data.filters.max_turns=3; no row is both",
    ),
    (["data=mix_200k", "data.filters.languages=[english]"], "data.filters.languages=english: not a code of ISO 639"),
    (
        ["data.filters.refusals=true"],
        "data.filters: has no effect, since there is no pool to filter; set data.filters.base=true",
    ),
    (
        ["data=mix_200k", "data.scorer.kind=column"],
        "data.scorer: has no effect, since the pool is not ranked; set data.pool.order=best",
    ),
    (["data.name=a/b"], "data.name=a/b: names a folder, so only letters, digits, . _ - and at most 64 of them; e.g."),
    (["model.name=../x"], "model.name=../x: names a folder"),
    (["model.id=''", "model.name=x"], "model.id: empty; give a hub id or a local folder"),
    (["model.attn_implementation=spda"], "model.attn_implementation=spda: one of sdpa, eager,"),
    (["model.weights=random"], "model.quantization=nf4: model.weights=random has nothing to quantise;"),
    (["lora.r=0"], "lora.r=0: not 1 or more"),
    (
        ["lora=none"],
        "lora.enabled=false: weights in 4 bits cannot be trained; set "
        "model.id=unsloth/Llama-3.2-3B-Instruct (the weights in 16 bits) and model.quantization=none",
    ),
    (
        ["lora=none", "model.quantization=none"],
        "lora.enabled=false: weights in 4 bits cannot be trained",
    ),
    (
        ["lora=none", "model=smollm2_135m", "model.quantization=nf4"],
        "lora.enabled=false: weights in 4 bits cannot be trained; set model.quantization=none",
    ),
    (
        ["lora=none", "model=tiny", "lora.r=8"],
        "lora.r: is ignored without an adapter; leave it out, or choose lora=default",
    ),
    (["lora.lora_dropout=1"], "lora.lora_dropout=1.0: not from 0 to below 1"),
    (["lora.target_modules=[]"], "lora.target_modules: empty;"),
    (["trainer.optim=adam"], "trainer.optim=adam: one of adamw_torch,"),
    (["trainer.lr_scheduler_type=cosin"], "trainer.lr_scheduler_type=cosin: one of linear, cosine,"),
    (["trainer.lr_scheduler_type=constant"], "trainer.lr_scheduler_type=constant: has no warm-up, so trainer.warmup"),
    (["trainer.loss_type=mle"], "trainer.loss_type=mle: one of chunked_nll, nll, dft"),
    (["trainer.max_steps=4"], "trainer.warmup_steps=5: not below trainer.max_steps=4, so the peak learning rate"),
    (["trainer.warmup_steps=2.5"], "trainer.warmup_steps=2.5: neither a whole number of steps nor a share"),
    (["trainer.learning_rate=0"], "trainer.learning_rate=0.0: not above 0"),
    (["trainer.weight_decay=-1"], "trainer.weight_decay=-1.0: not 0 or more"),
    (["trainer.conversations_per_step=0"], "trainer.conversations_per_step=0: not 1 or more"),
    (["trainer.micro_batch=0"], "trainer.micro_batch=0: neither auto nor 1 or more"),
    (["trainer.gradient_checkpointing=maybe"], "trainer.gradient_checkpointing=maybe: one of auto, true, false"),
    (
        ["trainer.packing=false"],
        "trainer.packing=false: counts steps in conversations; set trainer.conversations_per_step, e.g. 8",
    ),
    (
        ["trainer.max_length=3000"],
        "trainer.tokens_per_step=16384: not a whole number of packs of trainer.max_length=3000; e.g. 15000",
    ),
    (["trainer.num_train_epochs=inf"], "trainer.num_train_epochs=inf: not a finite number"),
    (["trainer.warmup_steps=inf", "trainer.max_steps=9"], "trainer.warmup_steps=inf: not a finite number"),
    (["trainer.weight_decay=-inf"], "trainer.weight_decay=-inf: not a finite number"),
    (["eval.confidence=95"], "eval.confidence=95.0: not between 0 and 1"),
    (["eval.limit=0"], "eval.limit=0: not 1 or more"),
    (["eval.compile=maybe"], "eval.compile=maybe: one of auto, true, false"),
    (
        ["eval.compile=true", "eval.batch_size=32"],
        "eval.compile=true: eval.batch_size=32 is too small; set more than 32",
    ),
    (["eval.compile=true", "eval.engine=transformers"], "eval.compile=true: eval.engine=transformers compiles nothing"),
    (["+eval/task@eval.tasks.a=jsonl"], "eval.tasks.a.path is required if eval.tasks.a.kind=jsonl;"),
    ([*MINE, "eval.tasks.a.metrics=[rogue]"], "eval.tasks.a.metrics=rogue:"),
    ([*MINE, "eval.tasks.a.references=[]"], "eval.tasks.a.references: empty"),
    ([*MINE, "eval.tasks.a.prompt=hi"], "eval.tasks.a.prompt: has no field"),
    (["tracking=none", "tracking.mode=online"], "tracking.mode=online: tracking.tracker=none logs nowhere;"),
    (["tracking.project=a/b"], "tracking.project=a/b: a name without"),
    (["seed=-1"], "seed=-1: not from 0 to 4294967295"),
    (["seeds.data=-1"], "seeds.data=-1: not from 0 to 4294967295"),
    (["paths.outputs=''"], "paths.outputs: empty; give a folder"),
    (["paths.cache='~nobody-of-that-name/x'"], "paths.cache=~nobody-of-that-name/x: cannot be looked up ("),
    ([f"paths.outputs={'x' * 300}"], f"paths.outputs={'x' * 300}: cannot be looked up (File name too long)"),
    (["plan=hours"], "plan=hours: one of true, false, measure"),
    (["sweep.name=a/b"], "sweep.name=a/b: names a folder"),
]


@pytest.mark.parametrize(("overrides", "message"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_one_problem(overrides, message):
    (problem,) = problems_of(*overrides)
    assert problem.startswith(message)


@pytest.mark.parametrize("name", ["outputs", "multirun", "cache"])
@pytest.mark.parametrize("path", ["file", "file/below/it"])
def test_a_folder_below_a_file(monkeypatch, tmp_path, name, path):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert problems_of(f"paths.{name}={path}") == [f"paths.{name}={path}: file is a file; give another folder"]


def test_all_problems_at_once(command):
    outcome = command("data=files_200k", "lora.r=0", "trainer.max_steps=0", "eval.confidence=2", "sweep.name='a b'")
    assert outcome.status == 2
    starts = [
        "data.base.path is",
        "data.pool.path is",
        "lora.r=",
        "trainer.max_steps=",
        "eval.confidence=",
        "sweep.name=",
    ]
    assert len(outcome.errors) >= len(starts)
    assert all(any(line.startswith(start) for line in outcome.errors) for start in starts)


def test_no_task_and_a_task_without_a_file_name():
    config = config_of()
    task = next(iter(config.eval.tasks.values()))
    config.eval.tasks = {}
    with pytest.raises(ConfigError, match=r"^eval\.tasks: empty; choose eval=hub, eval=files or"):
        check(config)
    config.eval.tasks = {"a b": task}
    with pytest.raises(ConfigError, match=r"^eval\.tasks\.a b=a b: names a folder"):
        check(config)


def test_every_number_must_be_finite():
    config = config_of()
    keys = [
        f"{group}.{name}"
        for group in ("model", "data", "lora", "trainer", "eval", "tracking")
        for name, value in vars(vars(config)[group]).items()
        if isinstance(value, float)
    ]
    assert {"trainer.max_grad_norm", "lora.lora_dropout", "eval.temperature"} <= set(keys)
    expected = sorted(f"{key}=nan: not a finite number" for key in keys)
    assert sorted(problems_of(*(f"{key}=nan" for key in keys))) == expected


def test_metrics_are_those_that_are_scored():
    assert (*metrics.METRICS, *metrics.MODEL_METRICS) == METRICS


def test_names_exist_in_transformers():
    optimisers = {name.value for name in OptimizerNames}
    assert set(OPTIMISERS) <= optimisers
    assert set(SCHEDULES) <= {name.value for name in transformers.SchedulerType}
