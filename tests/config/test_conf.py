"""Every YAML under conf/ composes, converts and passes the checks."""

import re
from fnmatch import fnmatch

import pytest
import yaml

from tests.config.conftest import config_of, sweep_of
from tometune.common.errors import ConfigError
from tometune.config.command_line import read_command_line
from tometune.config.root import conf_dir
from tometune.config.sweep_cells import jobs_of

CONF = conf_dir()
BASE, POOL = "data.base.path=base.jsonl", "data.pool.path=pool.jsonl"
TASKS = ("summarisation", "question_answering", "data_to_text", "instruction_following")
PATHS = {
    "data/files_100k": [BASE],
    **{f"data/files_{size}": [BASE, POOL] for size in ("200k", "300k", "300k_top", "300k_longest", "300k_ifd")},
    "data/mine": ["data.path=base.jsonl"],
    "eval/own": ["eval.path=test.jsonl"],
    "eval/files": [f"eval.tasks.{task}.path={task}.jsonl" for task in TASKS],
    "lora/none": ["model=smollm2_135m"],
    "eval/task/jsonl": ["eval.tasks.mine.path=mine.jsonl"],
}
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))


def choice(name: str) -> list[str]:
    """Return the overrides that choose a file of conf/."""
    group, _, option = name.rpartition("/")
    if not group:
        return []
    if group == "eval/task":
        return [f"+eval/task@eval.tasks.mine={option}", *PATHS.get(name, [])]
    if option.startswith("optuna"):
        return [f"+{group}={option}", "hydra.sweeper.n_trials=2"]
    if group in ("experiment", "sweep"):
        named = ["sweep.sources=[a,b]"] if option.endswith("_one_source_out") or option == "add_one_source" else []
        named += PATHS["data/mine"] if option == "does_it_help" else []
        return [f"+{group}={option}", "seed=0", *named]
    return [f"{group}={option}", *PATHS.get(name, [])]


PLUGINS = {  # which the install for the nightly tests has
    "hydra/launcher/ray": "hydra_plugins.hydra_ray_launcher",
    "sweep/optuna": "hydra_plugins.hydra_optuna_sweeper",
}


@pytest.mark.parametrize("name", FILES)
def test_composes(name):
    for prefix, plugin in PLUGINS.items():
        if name.startswith(prefix):
            pytest.importorskip(plugin)
    try:
        if name.startswith("sweep/optuna"):
            jobs = jobs_of(read_command_line(choice(name)))
            assert jobs is not None
            assert jobs.search
        else:
            assert sweep_of(*choice(name)) if name.startswith("sweep/") else config_of(*choice(name))
    except ConfigError as error:
        if ": not installed; pip install " not in str(error):
            raise
        pytest.skip(str(error))


LISTS = re.findall(r"^  (?:- |# )(\+?[a-z/]+)(?:: \w+ #|=) .*: (.+)$", (CONF / "train.yaml").read_text(), re.MULTILINE)


def test_the_manual_lists_every_group():
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*/*.yaml")}
    assert {group.lstrip("+") for group, _ in LISTS} == folders - {"eval/task"}


@pytest.mark.parametrize(("group", "options"), LISTS)
def test_the_manual_lists_the_options_of_each_group(group, options):
    """An option may be listed by a pattern, e.g. `files_*`."""
    names = [path.stem for path in (CONF / group.lstrip("+")).glob("*.yaml")]
    patterns = options.split(", ")
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []


@pytest.mark.parametrize("kind", ["mix", "files", "pydocs"])
def test_mixes_share_the_base_and_grow_by_the_pool(kind):
    unit = "00k" if kind != "pydocs" else "k"
    first, second, third = (config_of(*choice(f"data/{kind}_{n}{unit}")).data for n in (1, 2, 3))
    assert second.base == third.base == first.base
    assert (first.pool, second.pool) == (None, third.pool)
    assert second.pool is not None
    assert (first.rows, second.rows, third.rows) == tuple(n * first.base.rows for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("chosen", "model", "tasks", "held_out"),
    [
        ("data=pydocs_2k", "smollm2_135m", "pydocs", (0, True)),
        ("data=pydocs_3k_top model=llama32_1b eval=hub", "llama32_1b", "hub", (0, True)),
        ("data=mine data.path=mine.jsonl", "llama32_3b", "held_out", (None, False)),
        ("data=mine data.path=mine.jsonl eval=own eval.path=test.jsonl", "llama32_3b", "own", (0, True)),
        ("data=mix_200k eval=held_out", "llama32_3b", "held_out", (None, False)),
        ("+experiment=smoke data=mine data.path=mine.jsonl", "tiny", "pydocs", (0, True)),
    ],
)
def test_data_chooses_tasks_and_model_unless_they_are_chosen(chosen, model, tasks, held_out):
    config = config_of(*chosen.split())
    assert (config.model.name, config.eval.name) == (model, tasks)
    assert (config.data.held_out.rows, config.data.held_out.pool) == held_out
    assert [task.path for task in config.eval.tasks.values()] == ["test.jsonl"] or tasks != "own"


def test_the_cache_folder_follows_the_environment(monkeypatch):
    for name in ("XDG_CACHE_HOME", "TOMETUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    found = [config_of().paths.cache]
    for name, value in (("XDG_CACHE_HOME", "/x"), ("TOMETUNE_CACHE", "/t")):
        monkeypatch.setenv(name, value)
        found.append(config_of().paths.cache)
    assert found == ["~/.cache/tometune", "/x/tometune", "/t"]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("eval")])
def test_every_value_of_the_manual_has_a_comment(name):
    """A key of a whole file is explained above it or behind it; a file built on another explains itself at its top."""
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("#")
    content = yaml.safe_load(text)
    if name == "train" or "defaults" in content:
        return
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_scalar = ":" in line and not line.lstrip().startswith("#") and not line.endswith(":")
        if is_scalar and "/sweep/" not in name and not name.startswith("sweep"):
            assert lines[number - 1].lstrip().startswith("#"), f"{name}.yaml:{number + 1}: {line}"
