"""The schema documents itself, and nothing in it is without effect."""

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import tometune
from tometune.config.root import Config

PACKAGE = Path(tometune.__file__).parent
GROUP_FILES = ("data", "eval", "lora", "model", "root", "tracking", "trainer")


def schema_fields(cls: type = Config) -> Iterator[tuple[type, str]]:
    """Yield (dataclass, field name) for every leaf of the schema."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        inner = [hint for hint in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(hint)]
        if inner:
            yield from schema_fields(inner[0])
        else:
            yield cls, field.name


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
    read = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "config":
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        read |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    unread = sorted({f"{cls.__name__}.{name}" for cls, name in schema_fields() if name not in read})
    assert unread == []
