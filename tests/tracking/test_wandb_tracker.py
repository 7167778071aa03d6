"""W&B offline, read back with its own `wandb leet inspect`, and online: with a server, a bad one, or none."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.tracking.conftest import DOWN, ID, KEY, RUN_ID, WANDB, inspect, records, the_folder, track_in
from tests.tracking.server import WandbServer
from tests.whole import Workplace, curve_of
from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking.tracker import check_tracker

START = """
import logging, os, signal, time
from pathlib import Path
from tometune.config.tracking import TrackingConfig
from tometune.tracking.tracker import RunLabels, start_tracker
logging.basicConfig(level=logging.WARNING)
tracker = start_tracker(TrackingConfig(), RunLabels("x", "train", "g", Path("outputs/run"), {}))
"""


def losses(folder):
    """The points of the curve `train/loss` in a folder of W&B: step and value."""
    points = [record["history"]["item"] for record in records(folder) if record["type"] == "history"]
    return [(point["_step"], point["train/loss"]) for point in points if "train/loss" in point]


def run_record(folder):
    [found] = [record["run"] for record in records(folder) if record["type"] == "run"]
    return found


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
    assert printed["tracking"] == printed["after"]
    assert printed["tracking"] == {
        **{"tracker": "wandb", "mode": "offline", "reason": f"no API key (`{WANDB} login` stores one)"},
        **{"path": f"someone/tometune/{ID}", "url": None, "folders": [str(run)], "sync": f"{WANDB} sync {run}"},
    }
    assert printed["modules"] == ["wandb"]
    assert f"{WANDB} sync" in stderr
    assert "wandb:" not in stderr
    assert sorted(path.name for path in place.iterdir()) == ["home", "outputs"]
    assert [path.name for path in (place / "home").rglob("*") if "netrc" in path.name or "settings" in path.name] == []


def test_everything_of_the_run_and_nothing_of_the_machine_is_written(offline_run):
    folder = the_folder(offline_run[0] / "outputs" / "run")
    summary = json.loads(inspect("--summary", str(folder)))
    assert summary["config"] == {"trainer": {"learning_rate": 2e-4}}
    assert (summary["project"], summary["entity"], summary["run_id"]) == ("tometune", "someone", ID)
    assert (summary["name"], summary["tags"], summary["state"]) == (RUN_ID, ["first"], "finished")
    expected = {"data/rows": 3, "train/steps": 2, "eval/base/rouge1": 0.25, "eval/tuned/rouge1": 0.5}
    expected |= {"eval/gain/rougeL": 0.02, "eval/gain/rougeL_low": -0.01, "eval/gain/rougeL_high": 0.05}
    assert summary["summary"].items() >= expected.items()
    assert summary["summary"]["predictions/qa"]["_type"] == "table-file"

    written, run = records(folder), run_record(folder)
    assert (run["job_type"], run["run_group"], run["resume"]) == ("train", "g", True)
    assert run["git"] == {"commit": "c" * 40}
    assert "stats" in {record["type"] for record in written}, "use of GPU, memory and CPU"
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in written if r["type"] == "artifact"}
    [table] = [name for name in artifacts if name.startswith(f"run-{ID}-predictionsqa")]
    assert set(artifacts) == {f"mix-{ID}", f"adapter-{ID}", table}
    [adapter] = artifacts[f"adapter-{ID}"]["manifest"]["contents"]
    assert Path(adapter["local_path"]).read_bytes() == b"weights"
    assert json.loads(artifacts[f"mix-{ID}"]["metadata"]) == {"rows": 3}
    [path] = folder.glob("files/media/table/predictions/qa_*.table.json")
    assert json.loads(path.read_text())["data"][1][2:] == ["user\nQuestion 1?", "base answer 1", "one\n\ntwo", 0.1]
    [stored] = [entry for entry in artifacts[table]["manifest"]["contents"] if entry["path"].endswith(".table.json")]
    types = json.loads(Path(stored["local_path"]).read_text())["column_types"]["params"]["type_map"]
    assert types["scores.rouge1"]["params"]["allowed_types"] == [{"wb_type": "none"}, {"wb_type": "number"}]

    everything = json.dumps(written)
    assert not [text for text in ('"environment"', f'"host": "{socket.gethostname()}"') if text in everything]
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "conda-environment.yaml", "diff.patch", "output.log"}


def test_a_resumed_run_continues_at_its_step_and_sync_names_wandb_where_no_environment_is_active(
    offline_run, track, tmp_path
):
    shutil.copytree(offline_run[0] / "outputs", tmp_path / "outputs")
    inactive = {"PATH": os.defpath, "HOME": str(tmp_path)}
    tracking = json.loads(track(first_step=2, env=inactive, system=False).stdout)["tracking"]
    one, two = map(Path, tracking["folders"])
    assert one.name == the_folder(offline_run[0] / "outputs" / "run").name
    assert tracking["sync"] == f"{Path(sys.executable).with_name('wandb')} sync {one} {two}"
    assert losses(one) == [(0, 1), (1, 1 / 2), (2, 1 / 3)]
    assert losses(two) == [(3, 1 / 4), (4, 1 / 5)], "step 2 was logged before"
    assert "stats" not in {record["type"] for record in records(two)}, "tracking.system=false"


@pytest.mark.skipif(sys.platform != "linux", reason="finds W&B's process through /proc")
def test_a_dead_service_does_not_stop_the_run(run_python):
    code = """
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
for step in range(50):
    tracker.log({"train/loss": 1.0}, step=step)
    if step == 0:
        os.kill(int(children[0]), signal.SIGKILL)
import accelerate  # W&B would report it, in the import
tracker.summary({"x": 1})
tracker.finish("completed")
print("done", len(children))
"""
    done = run_python("-c", START + code)
    assert (done.returncode, done.stdout) == (0, "done 1\n"), done.stderr
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


@pytest.mark.nightly
@pytest.mark.whole
def test_the_curve_of_a_run_that_was_killed_is_its_file_and_its_group_is_the_sweep(tmp_path):
    place = Workplace(tmp_path)
    command = ("-m", "+experiment=smoke", "tracking=wandb", "tracking.mode=offline", "eval.base=false")
    command += ("sweep.name=pair", "trainer.max_steps=12", "trainer.save_steps=3")
    for moment in (
        ("tometune.training.trainer:MeteredTrainer.training_step", 5, "SIGKILL"),
        ("tometune.training.sft:save_adapter", 1, "SIGKILL"),
        ("tometune.evaluation.scoring:write_result", 1, "SIGKILL"),
    ):
        status, stderr = place.train(*command, moment=moment)
        assert status == -9, stderr
    status, stderr = place.train(*command)
    assert status == 0, stderr
    [run] = [path.parent for path in tmp_path.glob("multirun/pair/*/run.json")]
    attempts = sorted(run.glob("wandb/offline-run-*"))
    assert len(attempts) == 4
    logged = [point for path in attempts for point in losses(path)]
    assert logged == [(step, pytest.approx(loss)) for step, loss in curve_of(run)]
    written = run_record(attempts[3])
    assert (written["run_group"], written["job_type"], written["display_name"]) == ("pair", "train", run.name)
    values = json.loads(inspect("--summary", str(attempts[3])))["summary"]
    assert {"data/rows", "train/tokens_per_second", "eval/tuned/rouge1"} <= set(values), "what the panels show"


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


@pytest.mark.parametrize("kind", ["rejecting", pytest.param("silent", marks=pytest.mark.nightly)])
def test_a_bad_server_means_offline(kind, track, folder, tmp_path):
    reason = "401" if kind == "rejecting" else "did not accept the run within 2 s"
    with WandbServer(status=401) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        url = server.url if kind == "rejecting" else f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = track(env={**DOWN, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url})
    printed = json.loads(done.stdout)
    assert printed["tracking"]["mode"] == "offline"
    assert reason in printed["tracking"]["reason"]
    assert printed["seconds"] < 20, "it waits for WANDB_INIT_TIMEOUT, which is 20 s by default"
    assert f"WARNING W&B is offline ({url}" in done.stderr
    assert f"{WANDB} sync {the_folder(folder).relative_to(tmp_path)}" in done.stderr
    assert list(folder.glob("wandb/run-*")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


def test_online_with_an_unreachable_server_is_an_error(track, folder):
    done = track(mode="online", env={"WANDB_API_KEY": KEY, **DOWN, "WANDB_MODE": "offline"})
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert line.startswith("UserError tracking.mode: online is not possible (http://127.0.0.1:9 did not accept")
    assert list(folder.glob("wandb/*run-*-*")) == []


def test_online_with_a_key(track, folder):
    with WandbServer() as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}, results=False)
    assert (done.returncode, done.stderr) == (0, "")
    described = json.loads(done.stdout)["tracking"]
    assert (described["mode"], described["path"]) == ("online", f"me/tometune/{ID}")
    assert described["url"] == f"{server.url}/me/tometune/runs/{ID}"
    assert (described["reason"], described["folders"], described["sync"]) == (None, [], None)
    assert set(server.queries) == {"RunResumeStatus", "UpsertBucket", "CreateRunFiles"}
    sent = server.bodies[f"/files/me/tometune/{ID}/file_stream"]
    assert sent.count('\\"train/loss\\":0.5') == 1
    everything = json.dumps([server.queries, server.bodies])
    assert not [secret for secret in (KEY, socket.gethostname(), str(folder)) if secret in everything]


def test_a_server_that_goes_away_does_not_delay_the_run(track):
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "1"}
        server.leave_after = "UpsertBucket"
        done = track(env=env, results=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING wandb: " in done.stderr
    assert f"to upload what was logged: {WANDB} sync " in done.stderr


NO_KEY = f"tracking.mode: online is not possible (no API key (`{WANDB} login` stores one)); set tracking.mode=offline"


@pytest.mark.parametrize(
    ("config", "env", "line"),
    [
        ({"mode": TrackingMode.online}, {}, NO_KEY),
        ({}, {"WANDB_MODE": "online"}, NO_KEY),
        ({"tags": ["x" * 65]}, {}, "tracking: W&B rejects this: "),
        ({"project": "a/b"}, {}, "tracking: W&B rejects this: "),
        ({}, {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, ("disabled", None)),
        ({}, {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, ("offline", None)),
        ({}, {"WANDB_API_KEY": "short"}, ("offline", "WANDB_API_KEY invalid: API key must have 40+ characters, has 5")),
    ],
)
def test_settings_are_checked_before_anything_is_written(config, env, line, clean_env, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": clean_env["HOME"], **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    if isinstance(line, str):
        with pytest.raises(UserError) as raised:
            check_tracker(TrackingConfig(**config))
        assert str(raised.value).startswith(line)
        assert "\n" not in str(raised.value)
    else:
        from tometune.tracking import wandb_tracker  # late, because it imports W&B

        assert wandb_tracker.choose_mode(TrackingMode.auto) == line
        wandb_tracker.wandb.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
