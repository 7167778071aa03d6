"""Writes whole files or none, and reports a full disk or a folder without access in one line."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any

from tometune.common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the disk, in the quota, or under the shell's limit on file sizes."""

FULL_TEXTS = (
    "No space left",  # safetensors has no error numbers
    "Disk quota exceeded",
    "File too large",
    "enforce fail at inline_container",  # torch.save
)

NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)  # no rights, or a read-only file system

IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
"""A folder where a file should be, or a file where a folder should be."""


class SaveError(RuntimeError):
    """Something could not be written; everything saved before is still valid."""


@contextmanager
def disk_errors(folder: Path, setting: str | None = None) -> Iterator[None]:
    """Turn errors of writing to a folder into one line that names the folder and the fix.

    Missing access is reported if `setting`, the full key that sets the folder, is given.

    Raises:
        SaveError: the disk is full.
        UserError: the folder cannot be written to, or something is in the way.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or any(text in str(error) for text in FULL_TEXTS):
            raise SaveError(
                f"{folder}: no space left on the disk; everything saved before is valid: free some space and run the "
                "same command again to resume"
            ) from error
        if setting is not None and number in (*NO_RIGHTS, errno.ENOTDIR, errno.EEXIST):  # or a file is in the way
            reason = os.strerror(number) if number else ""
            raise UserError(f"{folder}: cannot be written to ({reason}); set {setting} to another folder") from error
        if (obstacle := in_the_way(error)) is not None:
            raise obstacle from error
        raise


def in_the_way(error: Exception) -> UserError | None:
    """Return the error for the user if a folder is where a file should be, or the reverse; else None."""
    if not isinstance(error, OSError) or error.errno not in IN_THE_WAY:
        return None
    name = error.filename2 or error.filename
    if not isinstance(name, str | os.PathLike):
        return None
    path = next(path for path in (Path(name), *Path(name).parents) if path.exists())
    return UserError(f"{path}: is in the way ({error.strerror}); move it away and run the same command again")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a reader, also after a kill, sees the old file or the whole new one."""
    with temporary_path(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def temporary_path(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield an empty hidden file or folder next to `path`, for the body to fill and to rename to `path`.

    If the body does not rename it, it is removed. A kill leaves it behind, and the next call for this `path` removes
    it. A lock (flock) says whether it is still in use: unlike a process id it also works between containers and
    machines that share the disk.
    """
    for leftover in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if (lock := _lock(leftover)) is not None:
            _remove(leftover)
            os.close(lock)
    lock = None
    for _ in range(3):  # another process may remove it before it is locked; a file system without locks removes nothing
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
        temporary.mkdir() if folder else temporary.touch()
        if (lock := _lock(temporary)) is not None or fcntl is None:
            break
    try:
        yield temporary
    finally:
        _remove(temporary)
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Lock a file or folder and return the descriptor that holds the lock; None if it is in use or gone."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def sync_folder(folder: Path) -> None:
    """Bring the files of a folder to the disk: after a power cut, a renamed folder may otherwise hold empty files."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def relative_path(path: Path | str) -> str:
    """Return a path relative to the current folder if it is below that, which is shorter to read and to type."""
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)
