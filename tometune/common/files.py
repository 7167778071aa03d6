"""Writing to the disk: whole files or none, and a full disk told in one line; libraries report it in several ways."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the quota, or under the shell's limit on file sizes."""

SAYS = (
    "No space left",  # safetensors has no error numbers
    "Disk quota exceeded",
    "File too large",
    "enforce fail at inline_container",  # torch.save's way of saying it
)


class SaveError(RuntimeError):
    """Something could not be written; what was saved before is still valid."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into a `SaveError` that names the folder and what to do."""
    try:
        yield
    except Exception as error:
        by_number = isinstance(error, OSError) and error.errno in FULL
        if not by_number and not any(text in str(error) for text in SAYS):
            raise
        raise SaveError(
            f"{folder}: no room left on the disk; what was saved before is valid: free some room and run the same "
            "command again, it goes on from there"
        ) from error


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a half."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a temporary file in the same folder, flushed to the disk, then renamed."""
    temporary = temporary_for(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """Return the name of what becomes `path` once it is whole: beside it, hidden, with this host and process in it.

    What killed processes of this machine left under such names is removed; it can be large.
    """
    prefix = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{escape(prefix)}*"):
        pid = left.name.removeprefix(prefix).split(".")[0]
        if pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}")


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process on this machine, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
