"""The schema documents itself, and nothing in it is without effect."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import tometune
from tometune.config.data import SourceConfig
from tometune.config.root import Config

PACKAGE = Path(tometune.__file__).parent
GROUP_FILES = ("chat", "data", "eval", "export", "lora", "model", "root", "tracking", "trainer")


def schema_fields(cls: type = Config) -> Iterator[tuple[type, str]]:
    """Yield (dataclass, field name) for every leaf of the schema."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        inner = [hint for hint in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(hint)]
        if inner:
            yield from schema_fields(inner[0])
        else:
            yield owner(cls, field.name), field.name


def owner(cls: type, name: str) -> type:
    """Return the class of a field: of one that is inherited, where it is written."""
    return next(base for base in reversed(cls.__mro__) if name in get_annotations(base))


def test_every_field_has_a_docstring():
    without = []
    for name in GROUP_FILES:
        tree = ast.parse((PACKAGE / "config" / f"{name}.py").read_text())
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for statement, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(statement, ast.AnnAssign) and not documented:
                    without.append(f"{cls.name}.{ast.unparse(statement.target)}")
    assert without == []


def renamed(folder: Path) -> Path:
    """Return a copy of the package in which every field at the end of a path has another name in the schema."""
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    leaves = {(cls.__name__, name) for cls, name in schema_fields()}
    for group in GROUP_FILES:
        path = copy / "config" / f"{group}.py"
        lines = path.read_text(encoding="utf-8").splitlines()
        classes = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.ClassDef)]
        for owner, field in ((cls.name, statement) for cls in classes for statement in cls.body):
            if isinstance(field, ast.AnnAssign) and (owner, ast.unparse(field.target)) in leaves:
                lines[field.lineno - 1] = f"    renamed_{lines[field.lineno - 1].lstrip()}"
        path.write_text("\n".join(lines), encoding="utf-8")
    return copy


def reads(folder: Path) -> set[str]:
    """Return the fields that code outside of `config` reads, or `config.unused_settings`, as `Class.field`.

    By their types: mypy misses each field that was renamed wherever something of its dataclass is asked for it, and
    not where another object has an attribute of that name.
    """
    options = ["--config-file", PACKAGE.parent / "pyproject.toml", "--cache-dir", folder / "cache", "--no-pretty"]
    command = [sys.executable, "-m", "mypy", *options, "-p", renamed(folder).name]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
    missed = re.compile(
        r"^tometune/(?!config/(?!unused_settings)).*\"(\w+)\"(?: of \".*\")? has no attribute \"(\w+)\"", re.MULTILINE
    )
    inherited = {f"PoolConfig.{field.name}": f"SourceConfig.{field.name}" for field in fields(SourceConfig)}
    found = (f"{owner}.{name}" for owner, name in missed.findall(told))
    return {inherited.get(name, name) for name in found}


@pytest.mark.nightly
def test_every_field_is_read_by_some_code(tmp_path):
    fields_of_all = {f"{cls.__name__}.{name}" for cls, name in schema_fields()}
    found = reads(tmp_path)
    assert found <= fields_of_all
    assert sorted(fields_of_all - found) == []
