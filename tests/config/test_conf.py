"""Every YAML under conf/ composes, converts and passes the checks; YAMLs and schema explain every setting."""

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import chain, zip_longest
from pathlib import Path

import pytest
import yaml

import tometune
from tests.config.conftest import config_of, sweep_of
from tometune.common.errors import ConfigError
from tometune.config import sweep_cells
from tometune.config.command_line import read_command_line
from tometune.config.root import conf_dir
from tometune.config.sweep_cells import jobs_of

CONF = conf_dir()
BASE, POOL = "data.base.path=base.jsonl", "data.pool.path=pool.jsonl"
TASKS = ("summarisation", "question_answering", "data_to_text", "instruction_following")
NEEDED = {
    "data=files_100k": [BASE],
    **{f"data=files_{size}": [BASE, POOL] for size in ("200k", "300k", "300k_top", "300k_longest", "300k_ifd")},
    "data=mine": ["data.path=base.jsonl"],
    "eval=own": ["eval.path=test.jsonl"],
    "eval=files": [f"eval.tasks.{task}.path={task}.jsonl" for task in TASKS],
    "lora=none": ["model.id=in/16_bits", "model.quantization=none"],
    "+eval/task@eval.tasks.my_jsonl=jsonl": ["eval.tasks.my_jsonl.path=mine.jsonl"],
    "+sweep=add_one_source": ["sweep.sources=[a,b]"],
    "+sweep=leave_one_source_out": ["sweep.sources=[a,b]"],
    "+sweep=does_it_help": ["data.path=base.jsonl"],
}
"""Overrides that an option requires."""

FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))


def options(group: str, key: str = "") -> list[str]:
    """Return an override for each option of a group."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [f"{(key or group).format(name)}={name}" for name in names]


GROUPS = [options(group) for group in ("data", "lora", "eval", "model", "tracking", "trainer")]
GROUPS.append(options("eval/task", "+eval/task@eval.tasks.my_{}"))
TOGETHER = [[*filter(None, row)] for row in zip_longest(*GROUPS)]
"""Each row holds the next option of every group that has one."""

ALONE = [[choice] for group in ("chat", "export", "hydra/launcher") for choice in options(group)]
ALONE += [[choice, "seed=0"] for choice in options("experiment", "+experiment")]


@pytest.mark.parametrize("choices", [*TOGETHER, *ALONE], ids=" ".join)
def test_options_compose(choices):
    if "hydra/launcher=ray" in choices[0]:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    needed = chain.from_iterable(NEEDED.get(choice, ()) for choice in choices)
    with installed():
        config_of(*choices, *needed)


@pytest.mark.parametrize("choice", options("sweep", "+sweep"))
def test_sweeps_compose(choice, monkeypatch):
    if "optuna" in choice:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        jobs = jobs_of(read_command_line([choice, "hydra.sweeper.n_trials=2"]))
        assert jobs is not None
        assert jobs.search
        return
    cells_of = sweep_cells._cells
    monkeypatch.setattr(sweep_cells, "_cells", lambda *arguments: each_value_once(cells_of(*arguments)))
    with installed():
        assert sweep_of(choice, "seed=0", *NEEDED.get(choice, ()))


def each_value_once(cells: list[list[str]]) -> list[list[str]]:
    """Return enough cells of a sweep to hold each of its values once; composing all of them takes long."""
    seen = set[str]()
    return [cell for cell in cells if not seen.issuperset(cell) and not seen.update(cell)]


@contextmanager
def installed() -> Iterator[None]:
    """Skip the test if a launcher is not installed."""
    try:
        yield
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
    names = [f"data={kind}_{n}{'k' if kind == 'pydocs' else '00k'}" for n in (1, 2, 3)]
    first, second, third = (config_of(name, *NEEDED.get(name, ())).data for name in names)
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


PACKAGE = Path(tometune.__file__).parent
GROUP_FILES = [
    PACKAGE / "config" / f"{n}.py" for n in ("data", "eval", "export", "model", "report", "root", "tracking", "trainer")
]


def _is_dataclass(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and "dataclass" in map(ast.unparse, node.decorator_list)


def test_every_field_has_a_docstring_and_is_named_by_some_code():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path not in GROUP_FILES)
    classes = [node for path in GROUP_FILES for node in ast.parse(path.read_text()).body if _is_dataclass(node)]
    fields, undocumented, unnamed = 0, [], []
    for cls in classes:
        for statement, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            fields += 1
            name = ast.unparse(statement.target)
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                undocumented.append(f"{cls.name}.{name}")
            if "Config" not in ast.unparse(statement.annotation) and not re.search(rf'\.{name}\b|"{name}"', code):
                unnamed.append(f"{cls.name}.{name}")
    assert fields > 80
    assert (undocumented, unnamed) == ([], [])
