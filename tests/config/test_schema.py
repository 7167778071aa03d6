"""The schema documents itself, and nothing in it is without effect."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tometune

PACKAGE = Path(tometune.__file__).parent
GROUP_FILES = [
    PACKAGE / "config" / f"{n}.py" for n in ("data", "eval", "export", "model", "root", "tracking", "trainer")
]


def schema_fields(path: Path) -> Iterator[tuple[str, ast.AnnAssign, ast.stmt | None]]:
    """Yield (name of the dataclass, field, the statement after it) for each field of a file."""
    for cls in (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)):
        for statement, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                yield cls.name, statement, after


def name(owner: str, field: ast.AnnAssign) -> str:
    return f"{owner}.{ast.unparse(field.target)}"


ALL = [entry for path in GROUP_FILES for entry in schema_fields(path)]
LEAVES = {name(owner, field) for owner, field, _ in ALL if "Config" not in ast.unparse(field.annotation)}

PASSED_ON = {"LoraConfig.lora_alpha", "LoraConfig.use_rslora"}  # by their names, in `models/adapter.peft_settings`


def test_every_field_has_a_docstring():
    documented = [isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) for _, _, after in ALL]
    assert len(ALL) > 80
    assert [name(owner, field) for (owner, field, _), right in zip(ALL, documented, strict=True) if not right] == []


def test_every_field_is_named_by_some_code():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path not in GROUP_FILES)
    names = {leaf.partition(".")[2] for leaf in LEAVES}
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b|\"{name}\"", code)] == []


@pytest.mark.nightly
def test_every_field_is_read_by_some_code(tmp_path):
    """By the types: in a copy of the package the leaves have other names, and mypy reports who reads the old ones."""
    shutil.copytree(PACKAGE, tmp_path / "tometune", ignore=shutil.ignore_patterns("__pycache__"))
    for path in GROUP_FILES:
        lines = path.read_text().splitlines()
        for owner, field, _ in schema_fields(path):
            if name(owner, field) in LEAVES:
                lines[field.lineno - 1] = f"    renamed_{lines[field.lineno - 1].lstrip()}"
        (tmp_path / path.relative_to(PACKAGE.parent)).write_text("\n".join(lines))
    options = ["--config-file", PACKAGE.parent / "pyproject.toml", "--cache-dir", tmp_path / "cache", "--no-pretty"]
    command = [sys.executable, "-m", "mypy", *options, "-p", "tometune"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    own = "|".join(path.stem for path in GROUP_FILES)
    missed = rf'^tometune/(?!config/(?:{own})\.py).*"(\w+)"(?: of ".*")? has no attribute "(\w+)"'
    read = {".".join(found) for found in re.findall(missed, output, re.MULTILINE)}
    read |= {leaf.replace("PoolConfig.", "SourceConfig.") for leaf in read}  # a pool inherits the fields of a source
    assert sorted(LEAVES - read - PASSED_ON) == []
