"""The disk of a run fills up at every tenth of what it writes; with space again, the same command ends the run."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.damage.damage import TRAIN, assert_whole, run_of
from tests.whole import Workplace

pytestmark = [pytest.mark.whole, pytest.mark.nightly, pytest.mark.timeout(1800)]

STEPS = 10


@pytest.fixture
def resize(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Return a function that gives `multirun/` in `tmp_path` so many KiB, in memory."""
    folder = tmp_path / "multirun"
    folder.mkdir()

    def mount(size: int) -> None:
        options = f"{'remount,' if folder.is_mount() else ''}size={size}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a file system")

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_then_space(tmp_path: Path, resize: Callable[[int], None]) -> None:
    resize(100_000)
    place = Workplace(tmp_path)
    status, stderr = place.train(*TRAIN)
    assert status == 0, stderr
    used = shutil.disk_usage(tmp_path / "multirun").used // 1024
    expected = run_of(Path(shutil.copytree(tmp_path / "multirun", tmp_path / "calm" / "multirun")).parent)
    full = 0
    for step in range(1, STEPS + 1):
        for path in (tmp_path / "multirun").iterdir():
            shutil.rmtree(path)
        resize(used * step // STEPS)
        status, stderr = place.train(*TRAIN)
        assert "Traceback" not in stderr
        if status:
            full += 1
            assert re.search(r"no space left on the disk|No space left on device", stderr.splitlines()[-1]), stderr
        resize(100_000)
        status, stderr = place.train(*TRAIN)
        assert status == 0, stderr
        assert_whole(run_of(tmp_path), expected)
    assert full >= STEPS - 2
