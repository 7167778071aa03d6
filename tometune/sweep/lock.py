"""One process a run: a lock in the run's folder that dies with its owner."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tometune.config.errors import UserError
from tometune.run import now

NAME = ".lock"
"""The lock's file in the run's folder; there while a process is at the run, or was when it was killed."""

A_LOOK = 5.0
"""Seconds to wait where the owner is dead and the lock is not free: another process is just looking who has it."""


@dataclass(frozen=True)
class Owner:
    """The process that is at a run."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        """Say where to look for it."""
        return f"process {self.pid} on {self.host}"

    @property
    def alive(self) -> bool:
        """Whether it may still be there; of another host this machine cannot tell, and the lock decides."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            return True
        return True


class BusyError(UserError):
    """Another process is at this run."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        self.owner = owner
        who = f"{owner} (since {owner.since})" if owner else "another process"
        super().__init__(f"{folder}: {who} is at this run; wait for it or end it")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the only process at a run while the body runs; a folder it made and that stays empty is removed again.

    Of several processes that meet there, the maker may be gone when the last one leaves: the empty folder stays then.

    The lock is the kernel's (flock): when its owner ends, in whatever way, it is free for the next one.

    Args:
        folder: the run's folder; made if need be.

    Raises:
        BusyError: another process is at it.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _acquire(folder)
    path = folder / NAME
    try:
        path.write_text(json.dumps(asdict(Owner(socket.gethostname(), os.getpid(), now()))), encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile finds that it is gone and starts anew
        lock.release()
        with suppress(OSError):  # not empty, or another process was faster
            for made in absent:
                made.rmdir()


def owner_of(folder: Path) -> Owner | None:
    """Return the process that is at a run right now; None where there is none, or it did not say who it is."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with FileLock(path, blocking=False):
            return None  # its owner is dead
    except Timeout:
        return _read(path)


def _acquire(folder: Path) -> FileLock:
    """Take the lock, or find out who has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME, thread_local=False)
        try:
            lock.acquire(blocking=False)
            return lock
        except FileNotFoundError:  # its last owner has just removed the empty folder
            continue
        except Timeout:
            owner = _read(folder / NAME)
        if owner is None or owner.alive:
            raise BusyError(folder, owner) from None
        with suppress(Timeout):
            lock.acquire(timeout=A_LOOK)
            return lock
        raise BusyError(folder, owner)


def _read(path: Path) -> Owner | None:
    """Read who wrote the lock; None where it is not written yet."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
