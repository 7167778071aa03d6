"""Each wrong override is told in one line, with its full key and the nearest valid name, and all are told at once."""

import pytest

CASES = [
    ("data=mix_30k", "data=mix_30k: no such option; did you mean mix_300k, mix_100k? (options: files_100k,"),
    ("model=a/b", "model=a/b: no such option; for a hub id or a folder write model.id=a/b (options:"),
    ("tracking=null", "tracking=null: no such option; did you mean none?"),
    ("trainer.lerning_rate=1", "trainer.lerning_rate: no such key; did you mean trainer.learning_rate?"),
    ("learning_rate=1", "learning_rate: no such key; did you mean trainer.learning_rate?"),
    ("model.learning_rate=1", "model.learning_rate: no such key; did you mean trainer.learning_rate?"),
    (
        "trainer.per_device_train_batch_size=1",
        "trainer.per_device_train_batch_size: no such key; did you mean trainer.micro_batch, "
        "trainer.conversations_per_step?",
    ),
    ("trainer.max_steps.x=1", "trainer.max_steps.x: no such key; did you mean trainer.max_steps?"),
    ("trainer.foo=1", "trainer.foo: no such key; --cfg job prints all keys"),
    ("model.lerning_rate=1", "model.lerning_rate: no such key; did you mean trainer.learning_rate?"),
    ("data/pool=x", "data/pool: no such key; did you mean data.pool?"),
    ("dta=mix_100k", "dta: no such key; did you mean data?"),
    ("evel.limit=1", "evel.limit: no such key; did you mean eval.limit?"),
    ("qqqqq=1", "qqqqq: no such key; --cfg job prints all keys"),
    ("+qqqqq=1", "qqqqq: no such key; --cfg job prints all keys"),
    ("+trainer.qqqqq=1", "trainer.qqqqq: no such key; --cfg job prints all keys"),
    ("~qqqqq", "qqqqq: no such key; --cfg job prints all keys"),
    (
        "~trainer",
        "~trainer: every run needs one; choose another, trainer=OPTION (options: cpu, cpu_third, debug, default, h200, "
        "notebook, rtx24gb, t4)",
    ),
    ("~model=llama32_3b", "~model=llama32_3b: every run needs one; choose another, model=OPTION (options: llama32_1b"),
    ("~experiment", "~experiment: experiment is not chosen by default; leave out the +experiment=… that adds it"),
    ("~trainer.learning_rate", "~trainer.learning_rate: only a task can be deleted; set it, trainer.learning_rate=…"),
    ("~data.pool", "~data.pool: only a task can be deleted; write data.pool=null"),
    ("~seeds", "~seeds: only a task can be deleted; set its keys, e.g. seeds.data=…"),
    ("~eval.tasks", "~eval.tasks: only a task can be deleted; leave out one task by ~eval.tasks.NAME"),
    ("~eval.tasks.data_to_text.limit", "~eval.tasks.data_to_text.limit: only a task can be deleted; leave out one"),
    ("~eval/task@eval.tasks.a", "~eval/task@eval.tasks.a: leave the task out by its name, ~eval.tasks.a"),
    ("eval.tasks={}", "eval.tasks={}: changes nothing, since a dict is merged into what is there; leave out tasks one"),
    ("data.base={}", "data.base={}: changes nothing, since a dict is merged into what is there; name keys"),
    ("hydra.verbos=true", "hydra.verbos: no such key; did you mean hydra.verbose?"),
    ("trainer.max_steps=ten", "trainer.max_steps=ten: not an integer"),
    ("trainer.max_steps=2.5", "trainer.max_steps=2.5: not an integer"),
    ("trainer.learning_rate=high", "trainer.learning_rate=high: not a number"),
    ("trainer.learning_rate=null", "trainer.learning_rate=null: may not be null"),
    ("trainer.packing=maybe", "trainer.packing=maybe: not true or false"),
    ("model.name={a:1}", "model.name={'a': 1}: not a text"),
    ("lora.target_modules=q_proj", "lora.target_modules=q_proj: not a list; write lora.target_modules=[a,b]"),
    ("model.backend=unslth", "model.backend=unslth: one of auto, transformers, unsloth; did you mean unsloth?"),
    ("data.base={kind:fils}", "data.base.kind=fils: one of hub, files, pydocs; did you mean files?"),
    ("data.base={knd:files}", "data.base.knd: no such key; did you mean data.base.kind?"),
    ("seeds=1", "seeds=1: a group of keys, not a value; set one of seeds.data, seeds.order"),
    ("eval.tasks.mine.path=x", "eval.tasks.mine: no such task; to add one: +eval/task@eval.tasks.mine=jsonl"),
    ("+eval.tasks.mine={kind:jsonl}", "eval.tasks.mine: no such task; to add one: +eval/task@eval.tasks.mine=jsonl"),
    ("eval/task=jsonl", "eval/task=jsonl: a task needs a name; write +eval/task@eval.tasks.NAME=jsonl"),
    ("eval/task@eval.tasks.a=jsonl", "eval/task@eval.tasks.a=jsonl: eval/task@eval.tasks.a is not chosen by default"),
    (
        "experiment=smoke",
        "experiment=smoke: experiment is not chosen by default; add it with a plus: +exper",
    ),
    ("+data=mix_200k", "+data=mix_200k: data has a choice already; write data=mix_200k"),
    ("+trainer.learning_rate=1", "+trainer.learning_rate=1: the key is there already; write it without the plus"),
    ("seed=0,1", "seed=0,1: several values need --multirun (-m)"),
    ("lora.target_modules=a,b", "lora.target_modules=a,b: several values need --multirun (-m); for a list write lora."),
    ("model.name=a,b", "model.name=a,b: several values need --multirun (-m); for one text write 'model.name=\"a,b\"'"),
    ("quickstart", "quickstart: not of the form key=value"),
    ("model.name=a(", "model.name=a(: not a valid value ("),
    ("data.rows=${foo}", "data.rows: holds ${foo}; foo: no such key; --cfg job prints all keys"),
    ("model.id=${model.nme}", "model.id: holds ${model.nme}; model.nme: no such key; did you mean model.name?"),
    ("model.id=${oc.env:NOT_SET}", "model.id: holds ${oc.env:NOT_SET}, which is not set; set it, or give a default:"),
    ("model.id=${nope:1}", "model.id: Unsupported interpolation type nope; a reference is ${KEY} with the full key"),
]


@pytest.mark.parametrize(("override", "message"), CASES, ids=[case[0] for case in CASES])
def test_one_wrong_override(command, override, message):
    outcome = command(override)
    assert outcome.status == 2
    assert len(outcome.errors) == 1, outcome.errors
    assert outcome.errors[0].startswith(message)
    assert outcome.configs == []


def test_all_wrong_overrides_at_once(command):
    single = [case for case in CASES if "${" not in case[0]]
    outcome = command(*(override for override, _ in single))
    assert outcome.status == 2
    missing = [message for _, message in single if not any(line.startswith(message) for line in outcome.errors)]
    assert missing == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=mix_100k,mix_30k"], "data=mix_30k: no such option; did you mean mix_300k, mix_100k?"),
        (["lora.r=0"], "lora.r=0: not 1 or more"),
        (["trainer.foo=1,2"], "trainer.foo: no such key"),
        (["seed=0,1", "~trainer"], "~trainer: every run needs one"),
        (["seed=0,one"], "seed=one: not an integer"),
        (["model.backend=auto,unslth"], "model.backend=unslth: one of auto"),
    ],
)
def test_each_value_of_a_sweep(command, overrides, message):
    outcome = command("-m", *overrides)
    assert outcome.status == 2
    assert outcome.errors[0].startswith(message)
    assert len(outcome.errors) == 1
    assert outcome.configs == []


def test_a_sweep_file_takes_several_values(command):
    outcome = command("+sweep=seeds", "data=mix_100k,mix_200k")
    assert outcome.status == 0
    assert len(outcome.configs) == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ["++trainer.max_steps=9"],
        ["data=mix_200k", "data.pool.revision=x"],
        ["data=mix_200k", "data.pool.weights.infini-instruct-top-500k=0.5"],
        ["data=mix_200k", "data.pool.weights.airoboros-3.2=0.5", "data.pool.caps.airoboros-3.2=10"],
        ["data=mix_200k", "data.pool.weights.glaive/code-2.0=0.5", "data.pool.caps={glaive/code-2.0: 10}"],
        ["data=mix_200k", "data.pool={revision: x, split: test}"],
        ["+eval/task@eval.tasks.mine=jsonl", "eval.tasks.mine.path=x", "~eval.tasks.mine"],
        ["~eval.tasks.data_to_text", "hydra.job.env_set={}", "~hydra.job.env_set"],
        ["lora.target_modules=[q_proj]"],
        ["model.name='a'"],
    ],
)
def test_nothing_right_is_called_wrong(overrides):
    from tometune.config.command_line import CommandLine, with_plus
    from tometune.config.overrides import find_problems
    from tometune.config.store import register

    register()
    assert find_problems(CommandLine(with_plus(overrides))) == []


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("key", "trainer:\n  max_stps: 3\n", "{file}: trainer.max_stps: no such key; did you mean trainer.max_steps?"),
        ("type", "trainer:\n  max_steps: ten\n", "{file}: trainer.max_steps=ten: not an integer"),
        ("syntax", "trainer:\n  max_steps: [3\nfoo: 1\n", "{file}:4: not YAML: expected ',' or ']', but got ':'"),
        ("option", "defaults:\n  - override /model: tony\n", "model=tony: no such option; did you mean tiny?"),
        ("group", "defaults:\n  - override /modl: tiny\n", "{file}: Could not override 'modl'."),
    ],
)
def test_wrong_yaml_file(command, tmp_path, option, text, message):
    file = tmp_path / "mine" / "experiment" / f"{option}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}")
    outcome = command(f"+experiment={option}", "--config-dir", str(tmp_path / "mine"))
    assert outcome.status == 2
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith(message.format(file=file))
