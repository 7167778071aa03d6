import errno
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tometune.common.errors import UserError
from tometune.common.files import SaveError, disk_errors, temporary_path, write_json, write_text
from tometune.common.progress import log_file

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="is Linux's device that is always full")


def test_write_text_never_leaves_a_half(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udcff")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def write_and_wait(target: Path, folder: bool, names: Connection) -> None:
    """Send the name of the temporary path of `target`, and write until killed."""
    with temporary_path(target, folder) as temporary:
        names.send(temporary.name)
        time.sleep(60)


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path, forked, folder):
    """Whoever holds the lock is at work, on whatever machine and under whatever process id."""
    target = tmp_path / "file"
    (tmp_path / ".files.0123.tmp").touch()
    received, names = multiprocessing.Pipe(duplex=False)
    killed, left = forked(write_and_wait, target, folder, names), received.recv()
    working, used = forked(write_and_wait, target, folder, names), received.recv()
    killed.kill()
    killed.join()
    assert (tmp_path / left).exists()
    write_text(target, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([used, ".files.0123.tmp", "file"])
    working.kill()
    working.join()
    write_text(target, "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".files.0123.tmp", "file"]


def write_until_killed(target: Path) -> None:
    """Die after the text has been written and before it is on the disk."""
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    write_json(target, {"status": "completed"})


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path, forked):
    target = tmp_path / "run.json"
    write_json(target, {"status": "running"})
    process = forked(write_until_killed, target)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads(target.read_text()) == {"status": "running"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    line = r"^data: cannot be written to \(Read-only file system\); set paths\.outputs to another folder$"
    with pytest.raises(UserError, match=line), disk_errors(Path("data"), "paths.outputs"):
        raise OSError(errno.EROFS, "x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), disk_errors(tmp_path, "paths.outputs"):
        (tmp_path / "file" / "below").mkdir(parents=True)
    with pytest.raises(OSError, match="x"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "x")


@needs_full_device
@pytest.mark.parametrize("write", [lambda path: path.write_text("x"), lambda path: torch.save(torch.zeros(9999), path)])
def test_a_full_disk_is_one_line_whatever_writes(tmp_path, write):
    with pytest.raises(SaveError, match=rf"^{tmp_path}: no space left[^\n]*$"), disk_errors(tmp_path):
        write(Path("/dev/full"))


def test_a_limit_on_file_sizes_is_reported_like_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SaveError), disk_errors(tmp_path):
            save_file({"x": torch.zeros(100_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@needs_full_device
def test_a_log_that_cannot_be_written_stops_nothing(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # other tests' handlers may hold closed streams
    with log_file(Path("/dev/full")):
        logging.getLogger("tometune").warning("a line")
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_in_the_way_is_named(tmp_path):
    """A folder where a file should be, or a file where a folder should be."""
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b").write_text("x")
    for write, obstacle in (
        (lambda: write_json(tmp_path / "a.json", {}), "a.json"),
        (lambda: (tmp_path / "a.json").read_text(), "a.json"),
        (lambda: (tmp_path / "b" / "c" / "d").mkdir(parents=True), "b"),
        (lambda: (tmp_path / "b").mkdir(), "b"),
    ):
        line = rf"^{re.escape(str(tmp_path / obstacle))}: is in the way \(.*\); move it away and run the same command"
        with pytest.raises(UserError, match=line), disk_errors(tmp_path):
            write()
