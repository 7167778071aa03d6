"""The disk of a run fills up at every tenth of what it writes; with space again, the same command ends the run."""

import re
import shutil
from pathlib import Path

import pytest

from tests.damage.damage import TRAIN, assert_whole, run_of
from tests.whole import Workplace

pytestmark = [pytest.mark.whole, pytest.mark.nightly, pytest.mark.timeout(1800)]

STEPS = 10


def test_a_full_disk_then_space(tmp_path, mounted):
    folder = tmp_path / "multirun"
    mounted(folder, "size=100000k")
    place = Workplace(tmp_path)
    status, stderr = place.train(*TRAIN)
    assert status == 0, stderr
    used = shutil.disk_usage(folder).used // 1024
    expected = run_of(Path(shutil.copytree(folder, tmp_path / "calm" / "multirun")).parent)
    full = 0
    for step in range(1, STEPS + 1):
        for path in folder.iterdir():
            shutil.rmtree(path)
        mounted(folder, f"size={used * step // STEPS}k")
        status, stderr = place.train(*TRAIN)
        assert "Traceback" not in stderr
        if status:
            full += 1
            assert re.search(r"no space left on the disk|No space left on device", stderr.splitlines()[-1]), stderr
        mounted(folder, "size=100000k")
        status, stderr = place.train(*TRAIN)
        assert status == 0, stderr
        assert_whole(run_of(tmp_path), expected)
    assert full >= STEPS - 2
