"""Rules that the checks of several groups share; each yields a problem with its full key and the fix."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tometune.common.errors import did_you_mean


def file_name(key: str, name: str) -> Iterator[str]:
    """Yield a problem unless `name` can be part of a file name and of a tracker's id everywhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        fixed = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "name"
        yield f"{key}={name}: names a folder, so only letters, digits, . _ - and at most 64 of them; e.g. {fixed}"


def one_of(key: str, value: str, valid: Sequence[str]) -> Iterator[str]:
    """Yield a problem unless `value` is a `valid` one."""
    if value not in valid:
        yield f"{key}={value}: one of {', '.join(valid)}{did_you_mean(value, list(valid))}"


def at_least(least: int, values: Mapping[str, int | float | None]) -> Iterator[str]:
    """Yield a problem for each key whose value is below `least`; null is fine where the schema allows it."""
    for key, value in values.items():
        if value is not None and value < least:
            yield f"{key}={value}: not {least} or more"


def folder(key: str, path: str) -> Iterator[str]:
    """Yield a problem unless `path` is a folder or can become one: where a file is in the way, it cannot."""
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
