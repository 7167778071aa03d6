"""trackio: local, or a line that says how to install it; and no tracker at all."""

import importlib.util
import json

import pytest

from tests.tracking.conftest import CHECKOUT
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking import check_tracker
from tometune.tracking.tracker import program

TRACKIO = TrackingConfig(tracker=Tracker.trackio)

READ = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
from tests.tracking.track import RUN_ID
[run] = list(trackio.Api().runs("tometune"))
print(json.dumps([run.config, SQLiteStorage.get_logs("tometune", RUN_ID)]))
"""


def test_a_missing_library_and_the_mode_online_are_rejected(monkeypatch):
    with pytest.raises(UserError, match="trackio keeps runs on this machine only; set tracking"):
        check_tracker(TrackingConfig(tracker=Tracker.trackio, mode=TrackingMode.online))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'trackio is not installed; pip install "tometune\[trackio\]"$'):
        check_tracker(TRACKIO)


def test_without_a_tracker_nothing_is_written_or_imported(track, folder):
    printed = json.loads(track(tracker="none").stdout)
    assert printed["tracking"] == {"tracker": "none"}
    assert printed["modules"] == []
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "eval", "mix.json"]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")
def test_a_run_can_be_read_back(track, folder, run_python):
    database = folder.parent / "trackio"
    done = track(tracker="trackio", env={"TRACKIO_SPACE_ID": "someone/elses"})
    assert done.returncode == 0, done.stderr
    assert "TRACKIO_SPACE_ID ignored" in done.stderr
    printed = json.loads(done.stdout)
    assert printed["tracking"]["folders"] == [str(database)]
    show = f"TRACKIO_DIR={database} {program('trackio')} show --project tometune"
    assert printed["tracking"]["show"] == show
    assert printed["modules"] == ["trackio"]
    read = run_python("-c", READ, env={"TRACKIO_DIR": str(database), "PYTHONPATH": str(CHECKOUT)})
    config, logs = json.loads(read.stdout)
    assert (config["trainer"], config["job_type"]) == ({"learning_rate": 2e-4}, "train")
    for name, values in (("train/loss", [1, 1 / 2, 1 / 3]), ("eval/tuned/rouge1", [0.5]), ("completed", [1])):
        assert [log[name] for log in logs if name in log] == values
    assert any("predictions/qa" in log for log in logs)
    blobs = [path.read_bytes() for path in database.glob("artifacts/**/*") if path.is_file()]
    assert sorted(blobs) == [b"weights", b'{"rows": 3}']
