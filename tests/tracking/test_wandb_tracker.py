"""W&B for real, offline; what it wrote is read back with W&B's own `wandb leet inspect`."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracking.server import WandbServer
from tometune.config.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking import check_tracker

KEY = "0123456789abcdef" * 3
DOWN = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
ID = "tiny-mix_1k-s0-abcdef01"

START = """
import logging
from pathlib import Path
from tometune.config.tracking import TrackingConfig
from tometune.tracking import start_tracker
logging.basicConfig(level=logging.WARNING)
labels = {"run_id": "x", "job_type": "train", "group": "g", "folder": Path("outputs/run"), "run_config": {}}
tracker = start_tracker(TrackingConfig(), **labels)
"""


def inspect(*arguments: str) -> str:
    """Return what `wandb leet inspect --json` prints."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(folder: Path) -> list[dict]:
    """Return the records of an offline run."""
    return [json.loads(line) for line in inspect(str(folder)).splitlines()]


def the_folder(folder: Path) -> Path:
    """Return the only folder of an offline run."""
    [found] = folder.glob("wandb/offline-run-*")
    return found


def test_offline_without_a_key(track, folder, tmp_path, clean_env):
    done = track(tags=["first"])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    run = the_folder(folder)
    assert said["tracking"] == {
        "tracker": "wandb",
        "mode": "offline",
        "reason": "no API key (`wandb login` stores one)",
        "path": f"tometune/{ID}",
        "url": None,
        "folders": [str(run)],
        "sync": f"wandb sync {run}",
    }
    assert said["after"] == said["tracking"]
    assert said["modules"] == ["wandb"]
    assert [line for line in done.stderr.splitlines() if "wandb sync" in line]
    assert "wandb:" not in done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "outputs"]
    assert [
        path.name for path in (tmp_path / "home").rglob("*") if "netrc" in path.name or "settings" in path.name
    ] == []


def test_everything_is_in_the_run(track, folder):
    assert track(tags=["first"], entity="someone").returncode == 0
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


def test_the_table_holds_the_predictions(track, folder):
    assert track().returncode == 0
    [path] = the_folder(folder).glob("files/media/table/predictions/qa_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["stage", "id", "prompt", "prediction", "references", "scores.rouge1"]
    assert table["data"][1] == ["base", "qa-1", "Question 1?", "base answer 1", "one\n\ntwo", 0.1]


def test_what_is_not_wanted_is_not_logged(track, folder):
    assert track(log_adapter=False, prediction_rows=0).returncode == 0
    assert [r["artifact"]["name"] for r in records(the_folder(folder)) if r["type"] == "artifact"] == [f"mix-{ID}"]


def test_nothing_about_the_machine(track, folder):
    assert track().returncode == 0
    written = inspect(str(the_folder(folder)))
    assert '"environment"' not in written
    assert f'"host":"{socket.gethostname()}"' not in written
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "conda-environment.yaml", "diff.patch", "output.log"}


@pytest.mark.parametrize("env", [{"WANDB_MODE": "offline"}, DOWN])
def test_no_key_in_any_file(track, folder, env, tmp_path):
    done = track(env={"WANDB_API_KEY": KEY, **env})
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert the_folder(folder) in {parent for path in files for parent in path.parents}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


def test_an_unreachable_server_means_offline(track, folder):
    done = track(env={"WANDB_API_KEY": KEY, **DOWN})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert said["seconds"] < 10
    assert "WARNING W&B is offline: http://127.0.0.1:9 did not take the run within 2 s" in done.stderr
    assert f"wandb sync {the_folder(folder)}" in done.stderr
    assert list(folder.glob("wandb/run-*")) == []


def test_a_silent_server_means_offline(track):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = track(env={"WANDB_API_KEY": KEY, **DOWN, "WANDB_BASE_URL": url})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert said["seconds"] < 10


@pytest.mark.parametrize("env", [{}, {"WANDB_MODE": "offline"}])
def test_online_with_an_unreachable_server_is_an_error(track, folder, env):
    done = track(mode="online", env={"WANDB_API_KEY": KEY, **DOWN, **env})
    assert done.returncode != 0
    assert done.stderr.startswith("UserError tracking.mode: online was asked for, but http://127.0.0.1:9 did not take")
    assert len(done.stderr.splitlines()) == 1
    assert list(folder.glob("wandb/*run-*")) == []


def test_a_key_that_the_server_refuses_means_offline(track):
    with WandbServer(status=401) as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert "401" in said["tracking"]["reason"]
    assert said["seconds"] < 10


def test_online_with_a_key(track, folder):
    with WandbServer() as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}, results=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["tracking"] == {
        "tracker": "wandb",
        "mode": "online",
        "reason": None,
        "path": f"me/tometune/{ID}",
        "url": f"{server.url}/me/tometune/runs/{ID}",
        "folders": [],
        "sync": None,
    }
    assert set(server.queries) == {"RunResumeStatus", "UpsertBucket", "CreateRunFiles"}
    assert server.queries["RunResumeStatus"] == {"project": "tometune", "entity": None, "name": ID}
    sent = server.bodies[f"/files/me/tometune/{ID}/file_stream"]
    assert sent.count('\\"train/loss\\":0.5') == 1
    everything = json.dumps([server.queries, server.bodies])
    assert KEY not in everything
    assert socket.gethostname() not in everything
    assert str(folder) not in everything
    assert [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_a_server_that_goes_away_does_not_hold_the_run_up(track):
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "1"}
        server.leave_after = "UpsertBucket"
        done = track(env=env, results=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING W&B stopped: " in done.stderr
    assert "to upload what was logged: wandb sync " in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds W&B's process through /proc")
def test_a_dead_service_does_not_take_the_run_along(run_python, folder):
    code = (
        START
        + """
import os, signal
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
    )
    done = run_python("-c", code)
    assert done.stdout == "done 1\n", done.stderr
    assert done.stderr.count("W&B stopped: ") == 1
    assert "Traceback" not in done.stderr


def test_a_killed_run_keeps_its_curves(run_python, folder):
    code = (
        START
        + """
import os, signal, time
for step in range(100):
    tracker.log({"train/loss": 1.0}, step=step)
time.sleep(2.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert run_python("-c", code).returncode == -9
    summary = json.loads(inspect("--summary", str(the_folder(folder))))
    assert (summary["state"], summary["exit_code"], summary["step"]) == ("running", None, 98)


@pytest.mark.parametrize(("choice", "env"), [({"mode": "online"}, {}), ({}, {"WANDB_MODE": "online"})])
def test_online_without_a_key_is_an_error(track, choice, env):
    done = track(env=env, **choice)
    assert done.stderr == (
        "UserError tracking.mode: online was asked for, but no API key (`wandb login` stores one); "
        "set tracking.mode=offline, or tracking=none\n"
    )


def test_a_malformed_key_means_offline(track):
    done = track(env={"WANDB_API_KEY": "short"})
    said = json.loads(done.stdout)
    assert said["tracking"]["reason"] == "WANDB_API_KEY invalid: API key must have 40+ characters, has 5"


def test_wandb_mode_is_respected(track, folder):
    said = json.loads(track(env={"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}).stdout)
    assert said["tracking"]["mode"] == "disabled"
    assert list(folder.glob("wandb/*run-*")) == []


def test_what_wandb_does_not_take_is_one_line(track):
    done = track(tags=["x" * 65])
    assert done.stderr.startswith("UserError tracking: W&B does not take this: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    done = track(project="a/b")
    assert done.stderr.startswith("UserError tracking: W&B does not take this: ")


def test_a_resumed_run_goes_on_at_its_step(track, folder):
    first = json.loads(track().stdout)
    second = json.loads(track(first_step=3).stdout)
    assert second["tracking"]["folders"] == [*first["tracking"]["folders"], *second["tracking"]["folders"][1:]]
    one, two = second["tracking"]["folders"]
    assert second["tracking"]["sync"] == f"wandb sync {one} {two}"
    steps = [
        record["history"]["item"]["_step"]
        for path in (one, two)
        for record in records(Path(path))
        if record["type"] == "history" and "train/loss" in record["history"]["item"]
    ]
    assert steps == [0, 1, 2, 3, 4, 5]


def test_a_failed_run_is_marked(folder, run_python):
    code = (
        START
        + """
with tracker:
    raise ValueError("broken")
"""
    )
    assert "ValueError: broken" in run_python("-c", code).stderr
    summary = json.loads(inspect("--summary", str(the_folder(folder))))
    assert (summary["exit_code"], summary["state"]) == (1, "failed")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (TrackingConfig(mode=TrackingMode.online), "tracking.mode: online was asked for, but no API key"),
        (TrackingConfig(tags=["x" * 65]), "tracking: W&B does not take this: "),
        (TrackingConfig(project="a/b"), "tracking: W&B does not take this: "),
    ],
)
def test_check_finds_it_before_anything_is_written(config, line, clean_env, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", clean_env["HOME"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        check_tracker(config)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_check_takes_the_default():
    check_tracker(TrackingConfig())
