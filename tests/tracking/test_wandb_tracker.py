"""Offline runs of W&B, read back with W&B's own `wandb leet inspect`."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracking.conftest import track_in
from tests.tracking.offline import ID, KEY, WANDB, inspect, records, the_folder

START = """
import logging, os, signal, time
from pathlib import Path
from tometune.config.tracking import TrackingConfig
from tometune.tracking import RunLabels, start_tracker
logging.basicConfig(level=logging.WARNING)
tracker = start_tracker(TrackingConfig(), RunLabels("x", "train", "g", Path("outputs/run"), {}))
"""


def losses(written):
    """The points of the curve `train/loss`: step and value."""
    points = [record["history"]["item"] for record in written if record["type"] == "history"]
    return [(point["_step"], point["train/loss"]) for point in points if "train/loss" in point]


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    """A run without a key: its place, what the process printed, and what it logged."""
    place = tmp_path_factory.mktemp("place")
    done = track_in(place, tags=["first"], entity="someone")
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout), done.stderr


def test_offline_without_a_key(offline_run):
    place, printed, stderr = offline_run
    run = the_folder(place / "outputs" / "run")
    assert printed["tracking"] == {
        "tracker": "wandb",
        "mode": "offline",
        "reason": f"no API key (`{WANDB} login` stores one)",
        "path": f"someone/tometune/{ID}",
        "url": None,
        "folders": [str(run)],
        "sync": f"{WANDB} sync {run}",
    }
    assert printed["after"] == printed["tracking"]
    assert printed["modules"] == ["wandb"]
    assert f"{WANDB} sync" in stderr
    assert "wandb:" not in stderr
    assert sorted(path.name for path in place.iterdir()) == ["home", "outputs"]
    assert [path.name for path in (place / "home").rglob("*") if "netrc" in path.name or "settings" in path.name] == []


def test_curves_summary_table_and_artifacts_are_in_the_run(offline_run):
    folder = the_folder(offline_run[0] / "outputs" / "run")
    summary = json.loads(inspect("--summary", str(folder)))
    assert summary["config"] == {"trainer": {"learning_rate": 2e-4}}
    assert (summary["project"], summary["entity"], summary["run_id"]) == ("tometune", "someone", ID)
    assert (summary["name"], summary["tags"], summary["state"]) == ("tiny-mix:1k-s0-abcdef01", ["first"], "finished")
    values = summary["summary"]
    expected = {"data/rows": 3, "train/steps": 2, "eval/base/rouge1": 0.25, "eval/tuned/rouge1": 0.5}
    assert {key: values[key] for key in expected} == expected
    assert values["predictions/qa"]["_type"] == "table-file"
    written = records(folder)
    [run] = [record["run"] for record in written if record["type"] == "run"]
    assert (run["job_type"], run["run_group"], run["resume"]) == ("train", "g", True)
    assert losses(written) == [(0, 1), (1, 1 / 2), (2, 1 / 3)]
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in written if r["type"] == "artifact"}
    [table] = [name for name in artifacts if name.startswith(f"run-{ID}-predictionsqa")]
    assert set(artifacts) == {f"mix-{ID}", f"adapter-{ID}", table}
    [adapter] = artifacts[f"adapter-{ID}"]["manifest"]["contents"]
    assert Path(adapter["local_path"]).read_bytes() == b"weights"
    assert json.loads(artifacts[f"mix-{ID}"]["metadata"]) == {"rows": 3}
    [path] = folder.glob("files/media/table/predictions/qa_*.table.json")
    assert json.loads(path.read_text())["data"][1][3:] == ["base answer 1", "one\n\ntwo", 0.1]


def test_nothing_about_the_machine_is_in_the_run(offline_run):
    folder = offline_run[0] / "outputs" / "run"
    written = json.dumps(records(the_folder(folder)))
    assert '"environment"' not in written
    assert f'"host": "{socket.gethostname()}"' not in written
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "conda-environment.yaml", "diff.patch", "output.log"}


def test_adapter_and_predictions_can_be_left_out(track, folder):
    done = track(env={"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, log_adapter=False, prediction_rows=0)
    assert done.returncode == 0, done.stderr
    artifacts = [r["artifact"]["name"] for r in records(the_folder(folder)) if r["type"] == "artifact"]
    assert artifacts == [f"mix-{ID}"]


def test_a_resumed_run_continues_at_its_step_and_sync_works_where_no_environment_is_active(track, folder, tmp_path):
    inactive = {"PATH": os.defpath, "HOME": str(tmp_path)}
    first = json.loads(track(env=inactive).stdout)["tracking"]
    second = json.loads(track(first_step=3, env=inactive).stdout)["tracking"]
    one, two = second["folders"]
    assert first["folders"] == [one]
    assert second["sync"] == f"{Path(sys.executable).with_name('wandb')} sync {one} {two}"
    assert [step for path in (one, two) for step, _ in losses(records(Path(path)))] == [0, 1, 2, 3, 4, 5]
    program, verb, *runs = shlex.split(second["sync"])
    listed = subprocess.run([program, verb, "--dry-run", *runs], env=os.environ | inactive, capture_output=True)
    assert listed.returncode == 0, listed.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds W&B's process through /proc")
def test_a_dead_service_does_not_stop_the_run(run_python, folder):
    code = """
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
tracker.log({"train/loss": 1.0}, step=0)
for child in children:
    os.kill(int(child), signal.SIGKILL)
for step in range(1, 50):
    tracker.log({"train/loss": 1.0}, step=step)
tracker.summary({"x": 1})
tracker.finish("completed")
print("done", len(children))
"""
    done = run_python("-c", START + code)
    assert done.stdout == "done 1\n", done.stderr
    assert done.stderr.count("the run continues") == 1
    assert "Traceback" not in done.stderr


def test_a_killed_run_keeps_its_curves(run_python, folder):
    code = """
for step in range(100):
    tracker.log({"train/loss": 1.0}, step=step)
time.sleep(2.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python("-c", START + code).returncode == -9
    summary = json.loads(inspect("--summary", str(the_folder(folder))))
    assert (summary["state"], summary["exit_code"], summary["step"]) == ("running", None, 98)


def test_rejected_tables_and_artifacts_are_one_warning_and_a_failed_run_is_marked(folder, run_python):
    """A table whose rows are shorter than its columns raises in wandb.Table, an artifact without files in add_file."""
    code = """
with tracker:
    tracker.table("t", ["a", "b"], [[1]])
    tracker.artifact("a", "mix", Path("nowhere"))
    tracker.log({"train/loss": 1.0}, step=0)
    raise ValueError("broken")
"""
    done = run_python("-c", START + code)
    assert "ValueError: broken" in done.stderr
    assert done.stderr.count("the run continues; to upload what was logged: ") == 1
    summary = json.loads(inspect("--summary", str(the_folder(folder))))
    assert (summary["exit_code"], summary["state"], summary["summary"]["train/loss"]) == (1, "failed", 1.0)


@pytest.mark.nightly
@pytest.mark.whole
def test_one_group_per_sweep_and_one_name_per_cell(run_verb, tmp_path):
    done = run_verb("train", "-m", "+experiment=smoke", "tracking=wandb", "seed=0,1", "sweep.name=pair")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in (tmp_path / "multirun" / "pair").glob("*/run.json"))
    assert [folder.name[:17] for folder in folders] == ["tiny-pydocs_64-s0", "tiny-pydocs_64-s1"]
    for folder in folders:
        (path,) = folder.glob("wandb/offline-run-*")
        written = records(path)
        (run,) = [record["run"] for record in written if record["type"] == "run"]
        assert (run["run_group"], run["job_type"], run["display_name"]) == ("pair", "train", folder.name)
        values = json.loads(inspect("--summary", str(path)))["summary"]
        assert {"data/rows", "train/tokens_per_second", "eval/tuned/rouge1"} <= set(values), "what the panels show"
        assert losses(written)
