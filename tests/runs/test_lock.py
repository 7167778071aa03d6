"""One process per run, with real processes: what the second one sees, and that a dead owner's lock is free."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tometune.runs.lock import BusyError, owner_of, run_lock

HOLD = """
import os, sys, time
from pathlib import Path
from tometune.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(5)  # as a worker that notices its parent's death a little later
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""
TURNS = """
import os, sys, time
from pathlib import Path
from tometune.runs.lock import BusyError, run_lock, owner_of
folder, done = Path(sys.argv[1]), 0
while done < 20:
    try:
        with run_lock(folder / "run"):
            inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails if another is inside
            os.close(inside)
            os.unlink(folder / "inside")
            done += 1
    except BusyError as busy:
        assert busy.owner, "nobody"
        owner_of(folder / "run")
        time.sleep(0.001)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], "subprocess.Popen[str]"]]:
    """Return a function that starts a process, with a child, which holds a run's lock."""
    started = []

    def start(folder: Path) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_process_is_told_who_has_it(tmp_path, hold):
    run = tmp_path / "run"
    process = hold(run)
    with pytest.raises(BusyError) as error, run_lock(run):
        pass
    host = socket.gethostname()
    assert str(error.value).startswith(f"{run}: already being run by process {process.pid} on {host} (since 2")
    owner = owner_of(run)
    assert (owner.host, owner.pid) == (host, process.pid)
    assert json.loads((run / ".lock").read_text())["pid"] == process.pid, "the loser left it as it was"
    # An owner on another host is not taken for dead.
    (run / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}))
    start = time.monotonic()
    with pytest.raises(BusyError, match="process 1 on elsewhere"), run_lock(run):
        pass
    assert time.monotonic() - start < 1


def test_a_dead_owners_lock_is_taken_over_at_once_even_if_its_child_lives(tmp_path, hold):
    process = hold(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()
    assert owner_of(tmp_path) is None
    start = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - start < 1
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_stays_empty_is_removed_and_looking_leaves_nothing_behind(tmp_path):
    run = tmp_path / "outputs" / "run"
    with run_lock(run):
        assert (run / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    # The owner leaves between the question whether its file is there and the look into it.
    run.mkdir(parents=True)
    (run / ".lock").write_text("")
    assert owner_of(run) is None
    assert list(tmp_path.glob("outputs/*")) == []
    with run_lock(run):
        (run / "run.json").write_text("{}")
    assert [path.name for path in run.iterdir()] == ["run.json"]


def test_of_many_at_once_one_has_it_at_a_time(tmp_path):
    """Eight processes take turns by trying again and looking who is there; none ever meets another inside."""
    command = [sys.executable, "-c", TURNS, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    assert list(tmp_path.iterdir()) == []
