"""Offline runs of W&B, read back with W&B's own `wandb leet inspect`."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracking.offline import ID, KEY, WANDB, inspect, records, the_folder

START = """
import logging, os, signal, time
from pathlib import Path
from tometune.config.tracking import TrackingConfig
from tometune.tracking import RunLabels, start_tracker
logging.basicConfig(level=logging.WARNING)
tracker = start_tracker(TrackingConfig(), RunLabels("x", "train", "g", Path("outputs/run"), {}))
"""


def test_offline_without_a_key(tracked):
    place, printed, stderr = tracked
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
    assert [line for line in stderr.splitlines() if f"{WANDB} sync" in line]
    assert "wandb:" not in stderr
    assert sorted(path.name for path in place.iterdir()) == ["home", "outputs"]
    assert [path.name for path in (place / "home").rglob("*") if "netrc" in path.name or "settings" in path.name] == []


def test_everything_is_in_the_run_and_nothing_about_the_machine(tracked):
    folder = tracked[0] / "outputs" / "run"
    summary = json.loads(inspect("--summary", str(the_folder(folder))))
    assert summary["config"] == {"trainer": {"learning_rate": 2e-4}}
    assert (summary["project"], summary["entity"], summary["run_id"]) == ("tometune", "someone", ID)
    assert (summary["name"], summary["tags"], summary["state"]) == ("tiny-mix:1k-s0-abcdef01", ["first"], "finished")
    values = summary["summary"]
    assert (values["data/rows"], values["train/steps"]) == (3, 2)
    assert (values["eval/base/rouge1"], values["eval/tuned/rouge1"]) == (0.25, 0.5)
    assert values["predictions/qa"]["_type"] == "table-file"

    written = records(the_folder(folder))
    [run] = [record["run"] for record in written if record["type"] == "run"]
    assert (run["job_type"], run["run_group"], run["resume"]) == ("train", "g", True)
    points = [record["history"]["item"] for record in written if record["type"] == "history"]
    assert [(p["_step"], p["train/loss"]) for p in points if "train/loss" in p] == [(0, 1), (1, 1 / 2), (2, 1 / 3)]
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in written if r["type"] == "artifact"}
    [table] = [name for name in artifacts if name.startswith(f"run-{ID}-predictionsqa")]
    assert set(artifacts) == {f"mix-{ID}", f"adapter-{ID}", table}
    [adapter] = artifacts[f"adapter-{ID}"]["manifest"]["contents"]
    assert Path(adapter["local_path"]).read_bytes() == b"weights"
    assert json.loads(artifacts[f"mix-{ID}"]["metadata"]) == {"rows": 3}
    [path] = the_folder(folder).glob("files/media/table/predictions/qa_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["stage", "id", "prompt", "prediction", "references", "scores.rouge1"]
    assert table["data"][1] == ["base", "qa-1", "Question 1?", "base answer 1", "one\n\ntwo", 0.1]

    assert '"environment"' not in json.dumps(written)
    assert socket.gethostname() != run.get("host")
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "conda-environment.yaml", "diff.patch", "output.log"}


def test_no_key_in_any_file_and_nothing_that_is_switched_off(track, folder, tmp_path):
    done = track(env={"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, log_adapter=False, prediction_rows=0)
    assert done.returncode == 0, done.stderr
    run = the_folder(folder)
    assert [r["artifact"]["name"] for r in records(run) if r["type"] == "artifact"] == [f"mix-{ID}"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run in {parent for path in files for parent in path.parents}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


def test_a_resumed_run_continues_at_its_step_and_sync_works_where_no_environment_is_active(track, folder, tmp_path):
    inactive = {"PATH": os.defpath, "HOME": str(tmp_path)}
    first = json.loads(track(env=inactive).stdout)["tracking"]
    second = json.loads(track(first_step=3, env=inactive).stdout)["tracking"]
    one, two = second["folders"]
    assert first["folders"] == [one]
    assert second["sync"] == f"{Path(sys.executable).with_name('wandb')} sync {one} {two}"
    steps = [
        record["history"]["item"]["_step"]
        for path in (one, two)
        for record in records(Path(path))
        if record["type"] == "history" and "train/loss" in record["history"]["item"]
    ]
    assert steps == [0, 1, 2, 3, 4, 5]
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
