"""Trackers next to W&B: trackio, TensorBoard and MLflow, each read back with its own library; and no tracker at all."""

import importlib.util
import json

import pytest

from tests.tracking.conftest import CHECKOUT
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking.tracker import check_tracker, program

READ = {
    "trackio": """
import trackio
from trackio.sqlite_storage import SQLiteStorage
[run] = trackio.Api().runs("tometune")
points = {}
for log in SQLiteStorage.get_logs("tometune", run.name):
    for name, value in log.items():
        points.setdefault(name, []).append([log["step"], value])
found = [run.config, points, points["predictions/qa"][0][1]["_value"][1], run.config["job_type"]]
""",
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(place).Reload()
points = {tag: [[point.step, point.value] for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
texts = {tag: read.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
plugin = read.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
found = [texts["config/text_summary"], points, texts["predictions/qa/text_summary"].splitlines()[3], plugin]
""",
    "mlflow": """
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
client = mlflow.MlflowClient()
[run] = client.search_runs([client.get_experiment_by_name("tometune").experiment_id])
histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
points = {name: [[point.step, point.value] for point in history] for name, history in histories.items()}
table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions/qa.json"))
more = [run.info.status, run.info.user_id, sorted(run.data.tags), any(name.startswith("system/cpu") for name in points)]
found = [[run.data.params, run.data.tags], points, table["data"][1], more]
""",
}
"""Scripts that read settings, curves, the second row of the table and more from the tracker's folder, `place`."""

CELLS = ["base", "qa-1", "user\nQuestion 1?", "base answer 1", "one\n\ntwo", 0.1]
ROWS = {"tensorboard": "| base | qa-1 | user<br>Question 1? | base answer 1 | one<br><br>two | 0.1 |"}
ROWS["trackio"] = dict(zip(("stage", "id", "prompt", "prediction", "references", "scores.rouge1"), CELLS, strict=True))
TAGS = ["group", "job_type", *(f"mlflow.{name}" for name in ("loggedArtifacts", "runName", "source.git.commit"))]
TAGS += ["mlflow.source.name", "mlflow.source.type", "run_id", "tags"]
MORE = {"trackio": "train", "tensorboard": "hparams", "mlflow": ["FINISHED", "unknown", TAGS, True]}
FOLDERS = {"trackio": "trackio", "tensorboard": "run/tensorboard/train", "mlflow": "mlflow"}
SHOW = {
    "trackio": "TRACKIO_DIR={0}/trackio {1} show --project tometune",
    "tensorboard": "{1} --logdir {0}",
    "mlflow": "{1} ui --backend-store-uri sqlite:///{0}/mlflow/mlflow.db",
}


def skip_without(tracker: str) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is an extra")


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
    assert (printed["tracking"], printed["modules"]) == ({"tracker": "none"}, [])
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "eval", "mix.json"]


OTHERS = [pytest.param(name, marks=pytest.mark.nightly) for name in ("tensorboard", "mlflow")]


@pytest.mark.parametrize("tracker", ["trackio", *OTHERS])
def test_a_resumed_run_can_be_read_back(tracker, track, folder, run_python):
    """TensorBoard's later attempt replaces the files of the earlier one, the other trackers continue the run."""
    skip_without(tracker)
    env = {"TRACKIO_SPACE_ID": "someone/elses", "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.05"}
    attempts = [track(tracker=tracker, env=env, pause=tracker == "mlflow"), track(2, tracker=tracker, system=False)]
    assert [done.returncode for done in attempts] == [0, 0], attempts
    assert ("TRACKIO_SPACE_ID ignored" in attempts[0].stderr) == (tracker == "trackio")
    assert attempts[1].stderr == ""
    printed, place = json.loads(attempts[1].stdout), folder.parent / FOLDERS[tracker]
    assert (printed["tracking"]["mode"], printed["tracking"]["folders"]) == ("offline", [str(place)])
    assert printed["tracking"]["show"] == SHOW[tracker].format(folder.parent, program(tracker))
    assert printed["modules"] == ["trackio"] or tracker != "trackio"
    script = f"import json\nplace = {str(place)!r}\n{READ[tracker]}\nprint(json.dumps(found))"
    read = run_python("-c", script, env={"TRACKIO_DIR": str(place), "PYTHONPATH": str(CHECKOUT)})
    settings, points, row, more = json.loads(read.stdout)
    assert "0.0002" in str(settings)
    assert "c" * 40 in str(settings)
    first = 2 if tracker == "tensorboard" else 0
    assert points["train/loss"] == [[step, pytest.approx(1 / (step + 1))] for step in range(first, 5)]
    assert points["eval/gain/rougeL_low"][-1] == [4, pytest.approx(-0.01)]
    assert (row, more) == (ROWS.get(tracker, CELLS), MORE[tracker])
    if tracker == "trackio":
        assert points["completed"] == [[2, 1], [4, 1]]
        blobs = [path.read_bytes() for path in place.glob("artifacts/**/*") if path.is_file()]
        assert {*blobs} == {b"weights", b'{"rows": 3}'}


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
def test_mlflow_tracks_one_run_after_the_other_and_a_server_that_is_not_there_costs_one_warning(track, run_python):
    skip_without("mlflow")
    done = run_python("-c", TWO_RUNS)
    assert (done.stdout, done.stderr) == ("tometune/a\ntometune/b\n", "")
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = track(tracker="mlflow", env=env)
    assert (done.returncode, done.stderr.count("the run continues")) == (0, 1), done.stderr
    secret = track(tracker="mlflow", env={"MLFLOW_TRACKING_URI": "http://someone:secret@127.0.0.1:9"})
    assert "UserError MLFLOW_TRACKING_URI: holds a name or password; put them into" in secret.stderr
    assert "secret" not in secret.stdout + secret.stderr
    offline = track(tracker="mlflow", env=env, mode="offline")
    assert json.loads(offline.stdout)["tracking"]["mode"] == "offline"
