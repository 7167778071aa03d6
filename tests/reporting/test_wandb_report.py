"""`report publish=wandb`: what is logged, the W&B report, and both offline and against a server on localhost."""

import json
import shutil

import pytest
import wandb_workspaces.reports.v2 as wr

from tests.reporting.sweeps import edit
from tests.tracking.conftest import KEY, WANDB, inspect, records
from tests.tracking.server import WandbServer
from tometune.config.tracking import TrackingConfig
from tometune.reporting.conclusions import NOTHING_TO_COMPARE
from tometune.reporting.sweep import read_sweep
from tometune.reporting.wandb_report import build, factors, log_report, runs_elsewhere, specification
from tometune.tracking.tracker import RunLabels, RunTracker, sanitise

# In processes of their own: W&B keeps files in a temporary folder that the first fork to end would delete.
ASK = ("report", "sweep.name=table", "eval.resamples=200", "publish=wandb")


class Kept(RunTracker):
    """Keeps everything that is logged."""

    def __init__(self, report):
        super().__init__(TrackingConfig(), RunLabels("report-table", "report", "table", report.sweep.folder, {}))
        self.values, self.tables, self.pages = {}, {}, {}
        self.summary, self.page = self.values.update, self.pages.__setitem__
        log_report(self, report)

    def table(self, name, columns, rows):
        self.tables[name] = columns, rows


def blocks_of(table):
    return specification(build(table, "tometune", ""))["spec"]["blocks"]


def run_sets(blocks):
    return [found for block in blocks if block["type"] == "panel-grid" for found in block["metadata"]["runSets"]]


def panels(blocks, kind):
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    found = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    return [panel["config"] for panel in found if panel["viewType"] == kind]


def test_tables_summary_and_page_are_logged(table_report, table, one_cell):
    kept = Kept(table_report)
    columns, rows = kept.tables["table"]
    names = "model data seeds ROUGE-1 ROUGE-2 ROUGE-L sd_1 sd_2 sd_L ROUGE-1_from ROUGE-1_to"
    assert [name.replace(" ", "_") for name in columns[:11]] == names.split()
    assert (rows[0][:3], rows[0][6:9]) == (["tiny", "base model", "–"], [None] * 3), "unknown values are None"
    last, entry = table["rows"][-1], table["comparisons"][0]
    assert rows[-1][3] == last["rouge1"]["mean"]
    assert rows[-1][-2:] == [last["rougeL"]["ci_low"], last["rougeL"]["ci_high"]]
    assert kept.values["difference/pydocs_2k-pydocs_1k/rouge1/p_holm"] == entry["p_holm"]
    assert kept.values["cell/pydocs_3k/rougeL/mean"] == last["rougeL"]["mean"]
    assert "cell/before_tiny/rouge1/std" not in kept.values
    assert kept.values["answers"].startswith("Is pydocs_3k better than pydocs_1k? Yes.")
    assert kept.pages == {"report": (table_report.sweep.folder / "report.html").read_text()}
    alone = Kept(one_cell)
    assert (list(alone.tables), alone.values["answers"]) == (["table"], NOTHING_TO_COMPARE)


def test_notes_on_runs_that_the_panels_lack(sweep):
    runs = sorted(path.parent for path in sweep.glob("*/run.json"))
    for run, path in zip(runs[:-1], ["tometune/x"] * 7 + ["me/tometune/x"], strict=True):
        edit(run, tracking={"tracker": "wandb", "path": path})
    absent = "1 of 9 runs were not logged to W&B, so its panels lack them"
    assert runs_elsewhere(read_sweep(sweep), "tometune") == [absent]
    edit(runs[-1], tracking={"tracker": "wandb", "path": "other/x"})
    elsewhere = "runs were logged to project other, not tometune: set tracking.project"
    assert runs_elsewhere(read_sweep(sweep), "tometune") == [elsewhere]


def test_the_report_has_the_table_and_panels_over_its_runs_and_wandb_reads_it_back(table):
    made, blocks = build(table, "tometune", ""), blocks_of(table)
    (text,) = (block["content"] for block in blocks if block["type"] == "markdown-block")
    assert text.startswith("| model | data | seeds | ROUGE-1 |")
    assert text.count("\n| tiny |") == 4
    assert "**Is pydocs_3k better than pydocs_1k?** Yes." in text
    loss, _, evaluated, gpu = panels(blocks, "Run History Line Plot")
    assert (evaluated["metrics"], gpu["metrics"][0]) == (["eval/loss"], "system/gpu.0.gpu")
    assert (loss["metrics"], loss["groupBy"], loss["groupArea"]) == (["train/loss"], "data.value.name", "minmax")
    *bars, _ = panels(blocks, "Bar Chart")
    assert [(each["metrics"], each["groupArea"]) for each in bars] == [
        ([f"eval/{stage}/{name}"], "stddev") for stage in ("tuned", "gain") for name in ("rouge1", "rouge2", "rougeL")
    ]
    assert [each["xAxis"] for each in panels(blocks, "Scatter Plot")] == ["summary:data/rows"] * 3
    assert len(panels(blocks, "Run Comparer")) == len(panels(blocks, "Media Browser")) == 1
    assert [found["name"] for found in run_sets(blocks)] == ["tiny", "tiny", "tiny", "report"]
    filters = [found["filters"]["filters"][0] for found in run_sets(blocks)]
    runs = [sanitise(run["run_id"], 64) for row in table["rows"] for run in row["runs"]]
    assert (sorted(filters[0]["value"]), filters[-1]["value"]) == (sorted(runs), ["report-table"])
    assert {found["key"]["name"] for found in filters} == {"name"}  # W&B's word for a run's id
    again = wr.Report._from_model(type(made._to_model()).model_validate(json.loads(json.dumps(specification(made)))))
    assert again.title == "Sweep table"
    assert [type(block) for block in again.blocks] == [type(block) for block in made.blocks]


def test_panels_follow_models_and_settings(one_seed, ranks, one_cell):
    sets = run_sets(blocks_of(one_seed.table))[:2]
    found = [(runs["name"], len(runs["filters"]["filters"][0]["value"])) for runs in sets]
    assert found == [("small", 3), ("tiny", 3)]
    assert [factors(made.table) for made in (ranks, one_cell)] == [["lora.r"], ["data.name"]]
    assert panels(blocks_of(ranks.table), "Bar Chart")[0]["groupBy"] == "lora.value.r"
    assert build(one_cell.table, "p", "").description == NOTHING_TO_COMPARE


@pytest.mark.nightly
def test_offline_it_prints_how_to_sync_and_a_second_report_replaces_the_first(run_verb, sweep):
    done = run_verb(*ASK, "tracking=none", fresh=True)
    assert done.returncode == 0, done.stderr
    (first,) = sweep.glob("wandb/*run-*")
    assert done.stdout.splitlines()[-3:] == [
        "9 of 9 runs were not logged to W&B, so its panels lack them",
        f"{WANDB} sync {first}",
        "multirun/table/wandb_report.json: the W&B report, not on a server (no API key "
        f"(`{WANDB} login` stores one)); repeat this command when W&B is online",
    ]
    assert json.loads((sweep / "wandb_report.json").read_text())["spec"]["blocks"]
    summary = json.loads(inspect("--summary", str(first)))
    assert (summary["run_id"], summary["state"]) == ("report-table", "finished")
    (run,) = [record["run"] for record in records(first) if record["type"] == "run"]
    assert (run["job_type"], run["run_group"], run["resume"]) == ("report", "table", True)
    (html,) = first.glob("files/media/html/report_*.html")
    assert html.read_text() == (sweep / "report.html").read_text()

    uploaded = first.with_name("offline-run-20260101_000000-report-table")
    shutil.copytree(first, uploaded)
    next(uploaded.glob("*.wandb")).with_suffix(".wandb.synced").touch()
    done = run_verb(*ASK, fresh=True)
    kept, second = sorted(sweep.glob("wandb/*run-*"))
    assert (kept, second != first) == (uploaded, True), "an attempt that was uploaded is kept"
    assert str(uploaded) not in done.stdout


def online(server):
    return {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "20"}


@pytest.mark.nightly
def test_online_the_report_is_saved_and_then_updated(run_verb, sweep):
    with WandbServer() as server:
        done = run_verb(*ASK, env=online(server), fresh=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == [
            f"{server.url}/me/tometune/runs/report-table",
            f"{server.url}/me/tometune/reports/Sweep-table--view1",
        ]
        sent = server.queries["upsertView"]
        assert (sent["id"], sent["entityName"], sent["projectName"]) == (None, "me", "tometune")
        assert {found["project"]["id"] for found in run_sets(json.loads(sent["spec"])["blocks"])} == {"7"}
        for kind in ("html/report_", "table/table_"):
            assert any(name.startswith(f"/upload/media/{kind}") for name in server.bodies)
        stored = json.loads((sweep / "wandb_report.json").read_text())
        assert (stored["id"], stored["place"]) == ("view1", "me/tometune")
        assert run_verb(*ASK, env=online(server), fresh=True).returncode == 0
        assert server.queries["upsertView"]["id"] == "view1"
        everything = json.dumps([server.queries, server.bodies])
    assert KEY not in everything
    assert str(sweep) not in everything
    assert [path for path in sweep.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


@pytest.mark.nightly
def test_a_server_that_rejects_the_report_is_one_line(run_verb, sweep):
    with WandbServer() as server:
        server.leave_after = "GetProjects"
        rejected = run_verb(*ASK, env=online(server), fresh=True)
    start = f"multirun/table/wandb_report.json: the W&B report; {server.url} rejected it: "
    assert rejected.stdout.splitlines()[-1].startswith(start)
    assert "Traceback" not in rejected.stderr
    assert json.loads((sweep / "wandb_report.json").read_text())["url"] is None
    disabled = run_verb(*ASK, env={"WANDB_MODE": "disabled"}, fresh=True)
    assert "not on a server (disabled)" in disabled.stdout
    assert (rejected.returncode, disabled.returncode) == (0, 0)


def test_online_without_a_key_stops_before_anything_is_computed(run_verb, sweep):
    done = run_verb(*ASK, "tracking.mode=online", fresh=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tracking.mode: online is not possible (no API key")
    assert not (sweep / "table.json").exists()
