"""One process a run: a lock in the run's folder that dies with its owner."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tometune.common.errors import UserError
from tometune.common.files import is_alive
from tometune.runs.run import now

NAME = ".lock"
"""The lock's file in the run's folder; there while a process is at the run, or was when it was killed."""

A_LOOK = 5.0
"""Seconds to wait where the lock is not free, but nobody alive says it is theirs: another process is just looking who
has it, or is coming or leaving."""

A_MOMENT = 0.01
"""Seconds from one try to the next."""


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
        return self.host != socket.gethostname() or is_alive(self.pid)


class BusyError(UserError):
    """Another process is at this run."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        self.owner = owner
        who = f"{owner} (since {owner.since})" if owner else "another process"
        super().__init__(f"{folder}: {who} is at this run; wait for it or end it")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the only process at a run while the body runs; a run's folder that holds nothing afterwards is removed.

    Whoever leaves it last removes it, whichever of several processes made it. Of the folders above it, each process
    removes those that it made, if they are empty too.

    The lock is the kernel's (flock): when its owner ends, in whatever way, it is free for the next one.

    Args:
        folder: the run's folder; made if need be.

    Raises:
        BusyError: another process is at it.
    """
    made = [folder, *(path for path in folder.parents if not path.exists())]
    lock = _acquire(folder)
    path = folder / NAME
    try:
        path.write_text(json.dumps(asdict(Owner(socket.gethostname(), os.getpid(), now()))), encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile finds that it is gone and starts anew
        lock.release()
        with suppress(OSError):  # not empty, or another process was faster
            for empty in made:
                empty.rmdir()


def owner_of(folder: Path) -> Owner | None:
    """Return the process that is at a run right now; None where there is none, or it did not say who it is."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with FileLock(path, blocking=False):
            if _read(path) is not None:
                return None  # its owner is dead
            path.unlink(missing_ok=True)  # it was gone by now, so that looking at it made another
    except FileNotFoundError:
        return None  # its owner has just removed the empty folder
    except Timeout:
        return _read(path)
    with suppress(OSError):  # not empty, or another process was faster
        folder.rmdir()
    return None


def _acquire(folder: Path) -> FileLock:
    """Take the lock, or find out who has it."""
    end = time.monotonic() + A_LOOK
    while True:
        lock = FileLock(folder / NAME, thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            return lock
        except (FileNotFoundError, FileExistsError):  # its last owner has just removed the empty folder
            if folder.is_file():
                raise
            continue
        except Timeout:
            owner = _read(folder / NAME)
        if (owner is not None and owner.alive) or time.monotonic() > end:
            raise BusyError(folder, owner)
        time.sleep(A_MOMENT)


def _read(path: Path) -> Owner | None:
    """Read who wrote the lock; None where it is not written yet."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
