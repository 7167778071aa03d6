"""The schema documents itself, and nothing in it is without effect."""

import ast
import re
from pathlib import Path

import tometune

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
