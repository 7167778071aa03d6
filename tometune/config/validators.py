"""Validators that several groups share, and marks for fields that are not part of a run's identity."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tometune.common.errors import did_you_mean

NOT_IDENTITY = {"identity": False}
"""Metadata of a field that cannot change a result (a label, a folder, logging): it is not part of the run's hash."""

SINCE_DEFAULT = {"identity": "unless default"}
"""Metadata of a field that was added later: at its default it is not part of the hash, so earlier runs keep theirs."""


def identity_if(*values: Any) -> dict[str, Any]:
    """Return the metadata of a field that is part of the hash only if it has one of these values."""
    return {"identity": values}


def file_name(key: str, name: str) -> Iterator[str]:
    """Yield a problem unless `name` can be part of a file name and of a tracker's id on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        fixed = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "name"
        yield f"{key}={name}: names a folder, so only letters, digits, . _ - and at most 64 of them; e.g. {fixed}"


def one_of(key: str, value: str, valid: Sequence[str]) -> Iterator[str]:
    """Yield a problem unless `value` is a `valid` one."""
    if value not in valid:
        yield f"{key}={value}: one of {', '.join(valid)}{did_you_mean(value, list(valid))}"


def at_least(least: int, values: Mapping[str, int | float | None]) -> Iterator[str]:
    """Yield a problem for each key whose value is below `least`; null passes, the schema decides about it."""
    for key, value in values.items():
        if value is not None and value < least:
            yield f"{key}={value}: not {least} or more"


def folder(key: str, path: str) -> Iterator[str]:
    """Yield a problem if `path` is no folder and cannot become one."""
    if not path:
        yield f"{key}: empty; give a folder"
        return
    try:
        given = Path(path).expanduser()
        nearest = next(place for place in (given, *given.parents) if place.exists())
    except (OSError, RuntimeError, ValueError) as error:  # no rights, a name too long, no such home, a null byte
        yield f"{key}={path}: cannot be looked up ({getattr(error, 'strerror', None) or error}); give another folder"
        return
    if not nearest.is_dir():
        yield f"{key}={path}: {nearest} is a file; give another folder"
