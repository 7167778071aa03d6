"""The schema documents itself, and nothing in it is without effect."""

import ast
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import tometune
from tometune.config.root import Config

PACKAGE = Path(tometune.__file__).parent
GROUP_FILES = ("data", "eval", "export", "model", "root", "tracking", "trainer")


def leaves(cls: type = Config) -> Iterator[str]:
    """Yield the name of every leaf of the schema."""
    for name, hint in get_type_hints(cls).items():
        inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        yield from leaves(inner[0]) if inner else [name]


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


def test_every_field_is_read_by_some_code():
    """By its name, outside of the schema; a name that other objects have too passes without proof."""
    schema = {PACKAGE / "config" / f"{name}.py" for name in GROUP_FILES}
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path not in schema)
    names = {*leaves()}
    assert len(names) > 80
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b|\"{name}\"", code)] == []
