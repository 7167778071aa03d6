"""`report publish=wandb` as a user starts it: offline, and against a W&B server on localhost."""

import json
import shutil

import pytest

from tests.reporting.test_wandb_report import grids
from tests.tracking.offline import DOWN, KEY, WANDB, inspect, records
from tests.tracking.server import WandbServer

# In processes of their own: W&B keeps files in a temporary folder that the first fork to end would delete.
ASK = ("report", "sweep.name=table", "eval.resamples=200", "publish=wandb")


def attempts(folder):
    return sorted(folder.glob("wandb/*run-*"))


def test_offline_it_prints_how_to_sync_and_a_second_report_replaces_the_first(run_verb, sweep):
    done = run_verb(*ASK, "tracking=none", fresh=True)
    assert done.returncode == 0, done.stderr
    (first,) = attempts(sweep)
    *_, lacking, sync, report = done.stdout.splitlines()
    assert lacking == "9 of 9 runs were not logged to W&B, so its panels lack them"
    assert sync == f"{WANDB} sync {first}"
    assert report == (
        "multirun/table/wandb_report.json: the W&B report, not on a server (no API key "
        f"(`{WANDB} login` stores one)); repeat this command when W&B is online"
    )
    assert json.loads((sweep / "wandb_report.json").read_text())["spec"]["blocks"]
    check_contents(first, sweep)
    uploaded = first.with_name("offline-run-20260101_000000-report-table")
    shutil.copytree(first, uploaded)
    next(uploaded.glob("*.wandb")).with_suffix(".wandb.synced").touch()
    done = run_verb(*ASK, fresh=True)
    kept, second = attempts(sweep)
    assert kept == uploaded, "an attempt that was uploaded is kept"
    assert second != first
    assert second.name.endswith("-report-table")
    assert str(uploaded) not in done.stdout


def check_contents(path, folder):
    """The run has the table, the comparisons and the figures."""
    summary = json.loads(inspect("--summary", str(path)))
    assert (summary["run_id"], summary["name"], summary["state"]) == ("report-table", "report-table", "finished")
    assert summary["config"]["sweep"] == "table"
    values = summary["summary"]
    assert values["table"]["_type"] == values["comparisons"]["_type"] == "table-file"
    assert (
        len([name for name, value in values.items() if isinstance(value, dict) and value.get("_type") == "html-file"])
        == 7
    )
    (run,) = [record["run"] for record in records(path) if record["type"] == "run"]
    assert (run["job_type"], run["run_group"], run["resume"]) == ("report", "table", True)
    (html,) = path.glob("files/media/html/report_*.html")
    assert html.read_text() == (folder / "report.html").read_text()
    (table,) = path.glob("files/media/table/table_*.table.json")
    assert json.loads(table.read_text())["data"][-1][:3] == ["tiny", "pydocs_3k", "3"]


def test_online_the_report_is_saved_and_then_updated(run_verb, sweep):
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "20"}
        done = run_verb(*ASK, env=env, fresh=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == [
            f"{server.url}/me/tometune/runs/report-table",
            f"{server.url}/me/tometune/reports/Sweep-table--view1",
        ]
        sent = server.queries["upsertView"]
        assert (sent["id"], sent["entityName"], sent["projectName"]) == (None, "me", "tometune")
        sets = [found for grid in grids(json.loads(sent["spec"])["blocks"]) for found in grid["runSets"]]
        assert {found["project"]["id"] for found in sets} == {"7"}
        assert any(name.startswith("/upload/media/html/report_") for name in server.bodies)
        assert any(name.startswith("/upload/media/table/table_") for name in server.bodies)
        stored = json.loads((sweep / "wandb_report.json").read_text())
        assert (stored["id"], stored["place"]) == ("view1", "me/tometune")
        assert run_verb(*ASK, env=env, fresh=True).returncode == 0
        assert server.queries["upsertView"]["id"] == "view1"
        everything = json.dumps([server.queries, server.bodies])
    assert KEY not in everything
    assert str(sweep) not in everything
    assert [path for path in sweep.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


@pytest.mark.nightly
def test_a_server_that_rejects_the_report_is_one_line(run_verb, sweep):
    with WandbServer() as server:
        server.leave_after = "GetProjects"
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "20"}
        done = run_verb(*ASK, env=env, fresh=True)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"multirun/table/wandb_report.json: the W&B report; {server.url} rejected it: ")
    assert "Traceback" not in done.stderr
    assert json.loads((sweep / "wandb_report.json").read_text())["url"] is None


@pytest.mark.nightly
def test_an_unreachable_server_is_one_line(run_verb, sweep):
    done = run_verb(*ASK, env={"WANDB_API_KEY": KEY, **DOWN}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "did not accept the run within 2 s" in done.stdout.splitlines()[-1]
    assert len([line for line in done.stderr.splitlines() if "did not accept the run" in line]) == 1


def test_online_without_a_key_stops_before_anything_is_computed(run_verb, sweep):
    done = run_verb(*ASK, "tracking.mode=online", fresh=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tracking.mode: online is not possible (no API key")
    assert not (sweep / "table.json").exists()


@pytest.mark.nightly
def test_disabled_by_the_environment(run_verb, sweep):
    done = run_verb(*ASK, env={"WANDB_MODE": "disabled"}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "not on a server (disabled)" in done.stdout
    assert "None" not in done.stdout


def test_other_services_are_rejected_and_by_default_nothing_is_published(run_verb, sweep):
    done = run_verb(*ASK[:3], "publish=wandbb")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "publish" in done.stderr
    assert "wandb" in done.stderr
    done = run_verb(*ASK[:3])
    assert done.returncode == 0, done.stderr
    assert not (sweep / "wandb").exists()
    assert not (sweep / "wandb_report.json").exists()
