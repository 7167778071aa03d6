"""Trackers next to W&B: trackio, TensorBoard and MLflow, each read back with its own library; and no tracker at all."""

import importlib.util
import json

import pytest

from tests.tracking.conftest import CHECKOUT
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking.tracker import check_tracker, program

READ = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
from tests.tracking.track import RUN_ID
[run] = list(trackio.Api().runs("tometune"))
print(json.dumps([run.config, SQLiteStorage.get_logs("tometune", RUN_ID)]))
"""


@pytest.mark.parametrize("tracker", [Tracker.trackio, Tracker.tensorboard, Tracker.mlflow])
def test_a_missing_library_and_the_mode_online_are_rejected(tracker, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    online = TrackingConfig(tracker=tracker, mode=TrackingMode.online)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    line = "needs a server's address in MLFLOW_TRACKING_URI" if tracker == "mlflow" else "on this machine only; set"
    with pytest.raises(UserError, match=line):
        check_tracker(online)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf'{tracker} is not installed; pip install "tometune\[{tracker}\]"$'):
        check_tracker(TrackingConfig(tracker=tracker))


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


READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1]).Reload()
points = {tag: [[point.step, point.value] for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
texts = {tag: read.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
print(json.dumps([points, texts, read.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name]))
"""


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is an extra")
def test_events_of_tensorboard_can_be_read_back_and_a_later_attempt_replaces_them(track, folder, run_python):
    for _ in range(2):
        done = track(tracker="tensorboard")
        assert done.returncode == 0, done.stderr
    tracking = json.loads(done.stdout)["tracking"]
    assert tracking["folders"] == [str(folder / "tensorboard" / "train")]
    assert tracking["show"] == f"{program('tensorboard')} --logdir {folder.parent}"
    read = run_python("-c", READ_EVENTS, *tracking["folders"])
    points, texts, plugin = json.loads(read.stdout)
    assert points["train/loss"] == [[0, 1], [1, 0.5], [2, pytest.approx(1 / 3)]]
    assert points["eval/gain/rougeL_high"] == [[2, pytest.approx(0.05)]]
    assert f"| commit | {'c' * 40} |" in texts["config/text_summary"]
    assert "| tuned" not in texts["predictions/qa/text_summary"]
    assert (
        "| base | qa-1 | user<br>Question 1? | base answer 1 | one<br><br>two | 0.1 |"
        in texts["predictions/qa/text_summary"]
    )
    assert plugin == "hparams"


READ_MLFLOW = """
import json, mlflow, sys
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
client = mlflow.MlflowClient()
[run] = client.search_runs([client.get_experiment_by_name("tometune").experiment_id])
curve = [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "train/loss")]
system = [key for key in run.data.metrics if key.startswith("system/")]
table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions/qa.json"))
found = [run.info.status, run.info.user_id, run.data.tags, run.data.params, run.data.metrics, curve, system, table]
print(json.dumps(found))
"""


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is an extra")
def test_a_run_of_mlflow_is_continued_and_can_be_read_back_and_names_nobody(track, folder, run_python):
    track(tracker="mlflow", env={"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.05"}, pause=1)
    done = track(tracker="mlflow", first_step=2, system=False)
    assert (done.returncode, done.stderr) == (0, "")
    tracking = json.loads(done.stdout)["tracking"]
    place = folder.parent / "mlflow"
    assert (tracking["mode"], tracking["folders"]) == ("offline", [str(place)])
    assert tracking["show"] == f"{program('mlflow')} ui --backend-store-uri sqlite:///{place}/mlflow.db"
    read = run_python("-c", READ_MLFLOW, str(place))
    status, user, tags, settings, values, curve, system, table = json.loads(read.stdout)
    assert (status, user, settings) == ("FINISHED", "unknown", {"trainer.learning_rate": "0.0002"})
    assert set(tags) == {
        *("run_id", "job_type", "group", "tags", "mlflow.runName", "mlflow.loggedArtifacts"),
        *("mlflow.source.git.commit", "mlflow.source.name", "mlflow.source.type"),
    }
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert curve == [[0, 1], [1, 0.5], [2, pytest.approx(1 / 3)], [3, 0.25], [4, 0.2]]
    assert values["eval/gain/rougeL_low"] == -0.01
    assert "system/cpu_utilization_percentage" in system
    assert table["data"][1][:4] == ["base", "qa-1", "user\nQuestion 1?", "base answer 1"]


TWO_RUNS = """
from pathlib import Path
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking.tracker import RunLabels, start_tracker
for name in ("a", "b"):
    with start_tracker(TrackingConfig(Tracker.mlflow), RunLabels(name, "train", "g", Path(name), {})) as tracker:
        tracker.log({"train/loss": 1.0}, step=0)
    print(tracker.describe()["path"])
"""


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is an extra")
def test_mlflow_tracks_one_run_after_the_other(run_python):
    done = run_python("-c", TWO_RUNS)
    assert (done.stdout, done.stderr) == ("tometune/a\ntometune/b\n", "")


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is an extra")
def test_a_server_of_mlflow_that_is_not_there_costs_one_warning(track):
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = track(tracker="mlflow", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run continues") == 1
    secret = track(tracker="mlflow", env={"MLFLOW_TRACKING_URI": "http://someone:secret@127.0.0.1:9"})
    assert "UserError MLFLOW_TRACKING_URI: holds a name or password; put them into" in secret.stderr
    assert "secret" not in secret.stdout + secret.stderr
    offline = track(tracker="mlflow", env=env, mode="offline")
    assert json.loads(offline.stdout)["tracking"]["mode"] == "offline"
