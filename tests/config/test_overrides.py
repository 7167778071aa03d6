"""A wrong override is one line with its key and the nearest name. tests/golden/errors.txt has more of these lines."""

import re
import subprocess

import pytest
from hydra import compose, initialize_config_dir

from tests.config.conftest import wrong_words
from tometune.common.errors import ConfigError
from tometune.config.aliases import ADVICE, FIXED, NAMES, RENAMED, TABLES, answers
from tometune.config.command_line import read_by, read_command_line
from tometune.config.error_messages import composition_errors, unknown_key
from tometune.config.root import CONFIG_NAME, conf_dir, register, setting_keys, typed

register()

CASES = [
    ("model=a/b", "model=a/b: no such option; for a hub id or a folder write model.id=a/b"),
    ("data=mine.jsonl", "data=mine.jsonl: no option of this group; for a file of your own write data=mine data.path=m"),
    ("eval=a/test.jsonl", "eval=a/test.jsonl: no option of this group; for a file of your own write eval=own eval.pat"),
    ("tracking=null", "tracking=null: choose an option of this group, tracking=OPTION"),
    ("data/pool=x", "data/pool: no such key; did you mean data.pool?"),
    ("model.lerning_rate=1", "model.lerning_rate: no such key; did you mean trainer.learning_rate?"),
    ("trainer.foo=1", "trainer.foo: no such key; --cfg job prints all keys"),
    ("~qqqqq", "~qqqqq: only a task can be deleted, ~eval.tasks.NAME"),
    ("~eval.tasks.data_to_txt", "~eval.tasks.data_to_txt: no such task; did you mean data_to_text?"),
    ("~eval.tasks.xyz", "~eval.tasks.xyz: no such task"),
    ("eval.tasks={}", "eval.tasks={}: an empty dict changes nothing; name the keys to change, or delete a task:"),
    ("trainer.learning_rate=high", "trainer.learning_rate=high: not a number"),
    ("trainer.learning_rate=null", "trainer.learning_rate=null: must not be null"),
    ("model.name={a:1}", "model.name={'a': 1}: not a text"),
    ("lora.target_modules=q_proj", "lora.target_modules=q_proj: not a list; write lora.target_modules=[a,b]"),
    ("data.base={knd:files}", "data.base.knd: no such key; did you mean data.base.kind?"),
    ("seeds=1", "seeds=1: a group of keys, not a value; set seeds.KEY=VALUE; one seed for all random choices: seed="),
    ("paths=null", "paths=null: a group of keys, not a value; set paths.KEY=VALUE"),
    ("hydra=null", "hydra=null: a group of keys, not a value; set hydra.KEY=VALUE"),
    ("eval=[a,b]", "eval=[a,b]: choose an option of this group, eval=OPTION"),
    ("eval.tasks=[a]", "eval.tasks=[a]: a group of keys, not a value; set eval.tasks.KEY=VALUE"),
    ("eval.tasks.mine.path=x", "eval.tasks.mine: no such task; to add one: +eval/task@eval.tasks.mine=jsonl"),
    ("eval.tasks.data_to_txt.limit=1", "eval.tasks.data_to_txt: no such task; did you mean data_to_text?"),
    ("+eval.tasks.mine={kind:jsonl}", "+eval.tasks.mine={kind:jsonl}: Invalid type assigned: dict is not a subclass"),
    ("experiment=smoke", "Could not override 'experiment'. No match in the defaults list. To append to your default"),
    ("+trainer.learning_rate=1", "Could not append to config. An item is already at 'trainer.learning_rate'."),
    ("model.name=a,b", "model.name=a,b: several values need --multirun (-m); one list is written 'model.name=[a,b]',"),
    ("model.name=a(", "model.name=a(: no viable alternative at input 'a('; quote the value: 'model.name=\"a(\"'"),
    ("model.id=${oc.env:NOT_SET}", "model.id: refers to the environment variable NOT_SET, which is not"),
    ("model.id=${nope:1}", "model.id: Unsupported interpolation type nope"),
]


ALIASES = [
    ("lr=1e-4", "lr=1e-4: no such key; write trainer.learning_rate=1e-4"),
    ("trainer.per_device_train_batch_size=1", "{0}: no such key; write trainer.micro_batch=1"),
    ("num_train_epochs=2", "num_train_epochs=2: no such key; write trainer.num_train_epochs=2"),
    ("temperature=0", None),  # of eval or chat?
    ("load_in_4bit=True", "{0}: no such key; write model.quantization=nf4"),
    ("bf16=false", None),
    ("dtype=bfloat16", "{0}: no such key; write model.precision=bf16"),
    ("trainer=rtx4090", "{0}: no such option; write trainer=rtx24gb"),
    ("gpu=RTX4090", "{0}: no such option; write trainer=rtx24gb"),
    ("lora=dora", None),
    ("data.name=colab", None),
    ("+eval/task@eval.tasks.rank=jsonl", None),
    ("dataset=user/set", "{0}: no such key; write data.base.id=user/set data.rows=N"),
    ("dataset=a.jsonl", "{0}: no such key; write data=mine data.path=a.jsonl"),
    ("chat_template=chatml", "{0}: no such key; leave it out; the model's own template is used"),
]


@pytest.mark.parametrize(("argument", "line"), ALIASES)
def test_the_name_of_another_program_is_answered_with_the_line_that_does_it(argument, line):
    assert [*answers([argument])] == ([] if line is None else [line.format(argument)])


def test_all_names_of_other_programs_are_answered_at_once_and_lead_to_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"^lr=1: .*\nepochs=2: .*\n~qqq: only a task"):
        read_command_line(["lr=1", "epochs=2", "~qqq"])
    assert [wrong for line in {*RENAMED, *FIXED} for wrong in wrong_words(line.format("…"))] == []
    keys = setting_keys()
    assert {*keys} & {*NAMES} == set()
    assert [*answers([f"{key}=true" for key in keys if f"{key}=true" not in FIXED])] == [], "our own names stay ours"
    assert len(NAMES) == sum(len(names.split()) for table in TABLES for names in table.values()), "named twice"
    assert {word for text in ADVICE for word in text.split() if "." in word} <= {*keys}
    assert unknown_key("trainer.lr") == "trainer.lr: no such key; did you mean trainer.learning_rate?"  # in a YAML file
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "rtx4090.yaml").touch()
    assert [*answers(["trainer=rtx4090"], tmp_path)] == []


def compose_all(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typed(compose(CONFIG_NAME, overrides))


@pytest.mark.parametrize(("override", "message"), CASES, ids=[case[0] for case in CASES])
def test_one_wrong_override(override, message):
    with pytest.raises(ConfigError) as error, composition_errors():
        compose_all(*read_command_line([override]).overrides)
    (problem,) = error.value.problems
    assert problem.startswith(message)


@pytest.mark.parametrize("value", ["You're nice", '(it\'s "$HOME")', "no\\ (", "end\\\" '(\\", "it's a, b"])
def test_the_advice_to_quote_a_value_is_valid_in_the_shell(value):
    with pytest.raises(ConfigError) as error, composition_errors():
        compose_all(f"chat.system={value}")
    word = re.split("quote the value: |one text ", error.value.problems[0])[-1]
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True)
    assert compose_all(done.stdout).chat.system == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.r=0", "seed=0,1"], "lora.r=0: not 1 or more"),
        (["lora.r=16,x"], "lora.r=x: not an integer"),
        (["lora=default,defalt"], "lora=defalt: no such option; did you mean default?"),
    ],
)
def test_a_sweep_that_is_wrong_as_a_whole_is_rejected_before_its_first_run(command, tmp_path, overrides, message):
    outcome = command("-m", *overrides)
    (error,) = outcome.errors
    assert error.startswith(message)
    assert (outcome.status, outcome.configs, list(tmp_path.iterdir())) == (2, [], [])


def test_nothing_right_is_called_wrong():
    right = [
        *("++trainer.max_steps=9", "data=mix_200k", "data.pool={revision: x, split: test}"),
        *("data.pool.weights.airoboros-3.2=0.5", "data.pool.weights.glaive/code-2.0=0.25"),
        *("data.pool.caps.airoboros-3.2=10", "data.pool.caps={glaive/code-2.0: 20}"),
        *("+eval/task@eval.tasks.mine=jsonl", "eval.tasks.mine.path=x", "~eval.tasks.mine", "~eval.tasks.data_to_text"),
        "hydra.job.env_set={}",
    ]
    config = compose_all(*read_command_line(right).overrides)
    pool = config.data.pool
    assert (config.trainer.max_steps, pool.revision, pool.split) == (9, "x", "test")
    assert pool.weights == {"airoboros-3.2": 0.5, "glaive/code-2.0": 0.25}
    assert pool.caps == {"airoboros-3.2": 10, "glaive/code-2.0": 20}
    assert {"mine", "data_to_text"} & {*config.eval.tasks} == set()


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
    (error,) = outcome.errors
    assert (outcome.status, error.startswith(message.format(file=file))) == (2, True), error


def test_a_verb_tracks_the_settings_that_it_reads():
    values = {"eval": {"limit": 3}, "seeds": {"data": 1, "generation": 2}, "chat": {"top_p": 1}, "seed": 0, "share": 0}
    assert read_by("evaluate", values) == {"eval": {"limit": 3}, "seeds": {"generation": 2}, "seed": 0}
    assert read_by("report", values) == {"eval": {}}
