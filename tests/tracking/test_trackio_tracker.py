"""trackio: local, or a line that says how to install it; and no tracker at all."""

import importlib.util
import json

import pytest

from tests.tracking.conftest import CHECKOUT
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking import check_tracker

installed = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")

READ = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
from tests.tracking.track import RUN_ID
[run] = list(trackio.Api().runs("tometune"))
print(json.dumps([run.config, SQLiteStorage.get_logs("tometune", RUN_ID)]))
"""


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_missing_library_says_how_to_install(track):
    done = track(tracker="trackio")
    assert done.stderr.splitlines() == [
        'UserError tracking.tracker: trackio is not installed; pip install "tometune[trackio]"'
    ]


def test_online_is_rejected():
    with pytest.raises(UserError, match="trackio keeps runs on this machine only; set tracking"):
        check_tracker(TrackingConfig(tracker=Tracker.trackio, mode=TrackingMode.online))


def test_without_a_tracker_nothing_is_written_or_imported(track, folder):
    printed = json.loads(track(tracker="none").stdout)
    assert printed["tracking"] == {"tracker": "none"}
    assert printed["modules"] == []
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "eval", "mix.json"]


@installed
def test_a_run_can_be_read_back(track, folder, run_python):
    database = folder.parent / "trackio"
    done = track(tracker="trackio", env={"TRACKIO_SPACE_ID": "someone/elses"})
    assert done.returncode == 0, done.stderr
    assert "TRACKIO_SPACE_ID ignored" in done.stderr
    said = json.loads(done.stdout)
    assert said["tracking"]["folders"] == [str(database)]
    assert said["modules"] == ["trackio"]
    read = run_python("-c", READ, env={"TRACKIO_DIR": str(database), "PYTHONPATH": str(CHECKOUT)})
    config, logs = json.loads(read.stdout)
    assert config["trainer"] == {"learning_rate": 2e-4}
    assert config["job_type"] == "train"
    assert [log["train/loss"] for log in logs if "train/loss" in log] == [1, 1 / 2, 1 / 3]
    assert [log["eval/tuned/rouge1"] for log in logs if "eval/tuned/rouge1" in log] == [0.5]
    assert any("predictions/qa" in log for log in logs)
    assert [log["completed"] for log in logs if "completed" in log] == [1]
    blobs = [path.read_bytes() for path in database.glob("artifacts/**/*") if path.is_file()]
    assert sorted(blobs) == [b"weights", b'{"rows": 3}']
