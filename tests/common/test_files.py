import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tometune.common.errors import UserError
from tometune.common.files import SaveError, disk_errors, write_json, write_text


def test_write_text_never_leaves_a_half(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udcff")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def leave_behind(target: Path, folder: bool) -> "subprocess.Popen[str]":
    """Return a process that is killed, or can be, while it writes `target`."""
    code = f"""
import sys, time
from pathlib import Path
from tometune.common.files import temporary_path
with temporary_path(Path({str(target)!r}), folder={folder}) as temporary:
    print(temporary.name, flush=True)
    time.sleep(60)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    """Whoever holds the lock is at work, on whatever machine and under whatever process id."""
    target = tmp_path / "file"
    killed, working = leave_behind(target, folder), leave_behind(target, folder)
    (tmp_path / ".files.0123.tmp").touch()
    try:
        assert killed.stdout is not None
        assert working.stdout is not None
        left, used = killed.stdout.readline().strip(), working.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert (tmp_path / left).exists()
        write_text(target, "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([used, ".files.0123.tmp", "file"])
    finally:
        working.kill()
        working.wait()
    write_text(target, "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".files.0123.tmp", "file"]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    """The process dies after half of the text has been written."""
    target = tmp_path / "run.json"
    write_json(target, {"status": "running"})
    code = f"""
import os, signal
from pathlib import Path
from tometune.common import files
def die(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)
files.os.fsync = die
files.write_json(Path({str(target)!r}), {{"status": "completed"}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert json.loads(target.read_text()) == {"status": "running"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    line = r"^data: cannot be written to \(Read-only file system\); set paths\.outputs to another folder$"
    with pytest.raises(UserError, match=line), disk_errors(Path("data"), "paths.outputs"):
        raise OSError(errno.EROFS, "x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"), disk_errors(tmp_path, "paths.outputs"):
        (tmp_path / "file" / "below").mkdir(parents=True)
    with pytest.raises(OSError, match="x"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "x")


def text(path: Path) -> None:
    with path.open("w") as file:
        file.write("x")


def tensors_by_torch(path: Path) -> None:
    torch.save(torch.zeros(100_000), path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="is Linux's device that is always full")
@pytest.mark.parametrize("write", [text, tensors_by_torch])
def test_a_full_disk_is_one_line_whatever_writes(tmp_path: Path, write) -> None:
    with pytest.raises(SaveError, match="no space left") as error, disk_errors(tmp_path):
        write(Path("/dev/full"))
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SaveError), disk_errors(tmp_path):
            save_file({"x": torch.zeros(100_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
