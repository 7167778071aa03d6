import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tometune.common.files import SaveError, disk_errors, write_text


def test_write_text_never_leaves_a_half(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udcff")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    here, target = socket.gethostname(), tmp_path / "file"
    gone = [tmp_path / f".file.{here}.{ended.pid}", tmp_path / f".file.{here}.{ended.pid}.x1"]
    gone[0].write_text("half")
    (gone[1] / "deep").mkdir(parents=True)
    kept = [f".file.{here}.{os.getppid()}", f".file.elsewhere.{ended.pid}", f".files.{here}.{ended.pid}", ".file.json"]
    for name in kept:
        (tmp_path / name).write_text("another's")
    write_text(target, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", *kept])


def text(path: Path) -> None:
    with path.open("w") as file:
        file.write("x")


def tensors_by_torch(path: Path) -> None:
    torch.save(torch.zeros(100_000), path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="is Linux's device that is always full")
@pytest.mark.parametrize("write", [text, tensors_by_torch])
def test_a_full_disk_is_one_line_whatever_writes(tmp_path: Path, write) -> None:
    with pytest.raises(SaveError, match="no room left") as error, disk_errors(tmp_path):
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


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        text(tmp_path / "none" / "file")
