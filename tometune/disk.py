"""A full disk, told in one line; libraries report it in several ways."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
