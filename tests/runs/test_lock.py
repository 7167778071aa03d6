"""One process per run, with real processes: what the second one sees, and that a dead owner's lock is free."""

import json
import multiprocessing
import os
import socket
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tometune.runs.lock import BusyError, owner_of, run_lock


def hold(folder: Path, held: Event) -> None:
    """Hold a run's lock in a process with a child, which notices its parent's death a little later."""
    with run_lock(folder):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        held.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path, forked):
    """A process that holds the lock of `tmp_path / "run"`."""
    held = multiprocessing.get_context("fork").Event()
    process = forked(hold, tmp_path / "run", held)
    assert held.wait(20)
    return process


def test_the_second_process_is_told_who_has_it(tmp_path, holder):
    run = tmp_path / "run"
    with pytest.raises(BusyError) as error, run_lock(run):
        pass
    host = socket.gethostname()
    assert str(error.value).startswith(f"{run}: already being run by process {holder.pid} on {host} (since 2")
    owner = owner_of(run)
    assert (owner.host, owner.pid) == (host, holder.pid)
    assert json.loads((run / ".lock").read_text())["pid"] == holder.pid, "the loser left it as it was"
    # An owner on another host is not taken for dead.
    (run / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}))
    start = time.monotonic()
    with pytest.raises(BusyError, match="process 1 on elsewhere"), run_lock(run):
        pass
    assert time.monotonic() - start < 1


def test_a_dead_owners_lock_is_taken_over_at_once_even_if_its_child_lives(tmp_path, holder):
    run = tmp_path / "run"
    holder.kill()
    holder.join()
    assert (run / ".lock").exists()
    assert owner_of(run) is None
    start = time.monotonic()
    with run_lock(run):
        assert time.monotonic() - start < 1
        assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


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


def take_turns(folder: Path) -> None:
    """Take the lock 20 times by trying again and looking who has it; fail if another process has it, too."""
    done = 0
    while done < 20:
        try:
            with run_lock(folder / "run"):
                (folder / "inside").touch(exist_ok=False)  # fails if another is inside
                (folder / "inside").unlink()
                done += 1
        except BusyError as busy:
            if busy.owner is None:
                raise
            owner_of(folder / "run")
            time.sleep(0.001)


def test_of_many_at_once_one_has_it_at_a_time(tmp_path, forked):
    for process in [forked(take_turns, tmp_path) for _ in range(8)]:
        process.join(60)
        assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []
