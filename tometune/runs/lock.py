"""One process per run: a lock in the run's folder that the kernel releases when its owner ends."""

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
from tometune.runs.run import now

NAME = ".lock"  # in the run's folder while a process works on the run, or after that process was killed
WAIT = 5.0  # seconds to wait for a lock without a living owner: a process is checking it, or is starting or ending


@dataclass(frozen=True)
class Owner:
    """The process that works on a run."""

    host: str
    pid: int
    since: str  # UTC, ISO 8601

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def alive(self) -> bool:
        """Whether it may still exist. That is unknown for another host, so the answer is yes and the lock decides."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, PermissionError)  # of another user
        return True


class BusyError(UserError):
    """Another process works on this run."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        self.owner = owner
        who = f"{owner} (since {owner.since})" if owner else "another process"
        super().__init__(f"{folder}: already being run by {who}; wait for it or stop it")


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run while the body runs. Makes the run's folder, and removes it if it is empty at the end.

    The lock is the kernel's (flock), so it is free again when its owner ends, in whatever way.

    Raises:
        BusyError: another process holds the lock.
    """
    made, path = [folder, *(path for path in folder.parents if not path.exists())], folder / NAME
    lock = _acquire(folder)
    try:
        path.write_text(json.dumps(asdict(Owner(socket.gethostname(), os.getpid(), now()))), encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so that a waiting process notices and retries
        lock.release()
        with suppress(OSError):  # not empty, or another process was faster
            for empty in made:
                empty.rmdir()


def owner_of(folder: Path) -> Owner | None:
    """Return the process that is working on a run, or None if there is none or it is unknown."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with FileLock(path, blocking=False):
            if _read(path) is not None:
                return None  # its owner was killed
            path.unlink(missing_ok=True)  # opening the lock made this file
    except (FileNotFoundError, FileExistsError):  # its owner has just removed the empty folder
        return None
    except Timeout:
        owner = _read(path)
        return owner if owner is not None and owner.alive else None  # a child that it was starting may hold the lock
    with suppress(OSError):  # not empty, or another process was faster
        folder.rmdir()
    return None


def _acquire(folder: Path) -> FileLock:
    end = time.monotonic() + WAIT
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
        time.sleep(0.01)


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
