"""Metadata of the schema's fields: how a value is checked, and whether it is part of a run's identity."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tometune.common.errors import did_you_mean

NOT_IDENTITY = {"identity": False}
"""Metadata of a field that cannot change a result (a label, a folder, logging): it is not part of the run's hash."""

SINCE_DEFAULT = {"identity": "unless default"}
"""Metadata of a field that was added later: its default is left out of the hash, so earlier runs keep theirs."""

NOT_FINITE = ": not a finite number"

Check = Callable[[str, Any], str | None]  # takes a full key and its value; returns the problem in one line, or None


def identity_if(*values: Any) -> dict[str, Any]:
    """Return the metadata of a field that is part of the hash only if it has one of these values."""
    return {"identity": values}


def checked(check: Check) -> dict[str, Check]:
    """Return the metadata of a field whose value, or each value of a dict or list, must pass a check."""
    return {"check": check}


def valid_if(condition: Callable[[Any], object], problem: str) -> dict[str, Check]:
    """Return the metadata of a field whose values must meet a condition; `problem` is the text if one does not."""
    return checked(lambda key, value: None if condition(value) else f"{key}={value}: {problem}")


SWITCH = valid_if(lambda value: value == "auto" or isinstance(value, bool), "one of auto, true, false")
"""Metadata of a setting that is on, off or chosen by the program."""


def at_least(least: int) -> dict[str, Check]:
    """Return the metadata of a field with a lower bound."""
    return valid_if(lambda value: value >= least, f"not {least} or more")


def one_of(valid: Sequence[str]) -> Check:
    """Return a check that accepts only the `valid` values."""

    def check(key: str, value: str) -> str | None:
        return None if value in valid else f"{key}={value}: one of {', '.join(valid)}{did_you_mean(value, valid)}"

    return check


def file_name(key: str, name: str) -> str | None:
    """Check that `name` can be part of a file name and of a tracker's id on every system."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return None
    fixed = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "name"
    return f"{key}={name}: names a folder, so only letters, digits, . _ - and at most 64 of them; e.g. {fixed}"


def folder(key: str, path: str) -> str | None:
    """Check that `path` is a folder or can become one."""
    if not path:
        return f"{key}: empty; give a folder"
    try:
        given = Path(path).expanduser()
        nearest = next(place for place in (given, *given.parents) if place.exists())
    except (OSError, RuntimeError, ValueError) as error:  # no rights, a name too long, no such home, a null byte
        return f"{key}={path}: cannot be looked up ({getattr(error, 'strerror', None) or error}); give another folder"
    return None if nearest.is_dir() else f"{key}={path}: {nearest} is a file; give another folder"


def value_problems(key: str, value: Any, check: Check | None = None) -> Iterator[str]:
    """Yield the problems of single values: of `value`, or of everything below a group, a dict or a list.

    A number must be finite. Any other value is judged by the field's own check; null always passes.
    """
    if is_dataclass(value):
        for entry in fields(value):
            yield from value_problems(f"{key}.{entry.name}", getattr(value, entry.name), entry.metadata.get("check"))
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from value_problems(f"{key}.{name}", child, check)
    elif isinstance(value, list):
        for child in value:
            yield from value_problems(key, child, check)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value}{NOT_FINITE}"
    elif value is not None and check is not None and (problem := check(key, value)):
        yield problem
