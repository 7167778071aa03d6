"""Publishes a report to W&B: as a run of the sweep's group, and as a W&B report over the sweep's runs."""

import contextlib
import io
import json
import re
from collections.abc import Mapping
from typing import Any

from tometune.common.errors import one_line
from tometune.common.files import write_json
from tometune.config.tracking import TrackingConfig
from tometune.evaluation.metrics import label
from tometune.reporting import wandb_report
from tometune.reporting.analysis import Report
from tometune.reporting.conclusions import NOTHING_TO_COMPARE, answers, cautions
from tometune.reporting.page import picture_page, pictures
from tometune.reporting.sweep import Sweep
from tometune.reporting.text import cells, columns
from tometune.reporting.wandb_report import COMPARISONS, PAGE, TABLE
from tometune.tracking import RunLabels, RunTracker, start_tracker

FILE = "wandb_report.json"  # the W&B report's specification in the sweep's folder


def publish(report: Report, tracking: TrackingConfig) -> list[str]:
    """Log the report as a run of the sweep's group, then save the W&B report; returns lines that say where both are.

    Raises:
        UserError: the mode is `online` and that is not possible.
    """
    table, folder = report.table, report.sweep.folder
    facts = {name: table[name] for name in ("sweep", "interval", "tasks", "limited")}
    run_id = wandb_report.run_id(table["sweep"])
    labels = RunLabels(run_id, wandb_report.JOB_TYPE, table["sweep"], folder, facts, replaces=True)
    with start_tracker(tracking, labels) as tracker:
        log_report(tracker, report)
    described = tracker.describe()
    if "path" not in described:
        return [f"not published: {described.get('reason') or 'W&B does not say where the run is'}"]
    lines = [*runs_elsewhere(report.sweep, tracking.project), described["url"] or described["sync"]]
    return [line for line in [*lines, save(report, described)] if line]


def log_report(tracker: RunTracker, report: Report) -> None:
    """Log the report: numbers in the summary, two tables, one page per figure, and the whole page.

    Unknown values in tables are None.
    """
    table, metrics = report.table, report.table["metrics"]
    text = "\n\n".join(" ".join([each.question, each.verdict, *each.sentences]) for each in answers(table))
    words = {"answers": text or NOTHING_TO_COMPARE, "cautions": "\n".join(cautions(table))}
    tracker.summary({**summary_numbers(table), **words})
    rows = [
        [
            *cells(row, table)[:3],
            *(row[metric][part] for part in ("mean", "std") for metric in metrics),
            *(row[metric][end] for metric in metrics for end in ("ci_low", "ci_high")),
        ]
        for row in table["rows"]
    ]
    ends = [f"{label(metric)} {end}" for metric in metrics for end in ("from", "to")]
    tracker.table(TABLE, [*columns(table), *ends], rows)
    if table["comparisons"]:
        names = ["a", "b", "metric", "delta", "ci_low", "ci_high", "p", "p_holm", "interval_over"]
        tracker.table(COMPARISONS, names, [[entry[name] for name in names] for entry in table["comparisons"]])
    for name, picture in pictures(report).items():
        if picture is not None:
            tracker.page(f"picture/{name}", picture_page(picture))
    tracker.page(PAGE, (report.sweep.folder / "report.html").read_text(encoding="utf-8"))


def summary_numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers by which W&B can compare sweeps.

    `cell/pydocs_1k/rouge1/mean` for each cell, and `difference/pydocs_3k-pydocs_1k/rouge1/delta` for each test.
    """

    def key(cell: str) -> str:  # in a summary key, dots would nest and slashes would group
        return re.sub(r"[^A-Za-z0-9_-]+", "_", cell)

    numbers = {
        f"cell/{key(row['cell'])}/{metric}/{part}": row[metric][part]
        for row in table["rows"]
        for metric in table["metrics"]
        for part in ("mean", "std")
    }
    numbers |= {
        f"difference/{key(entry['a'])}-{key(entry['b'])}/{entry['metric']}/{part}": entry[part]
        for entry in table["comparisons"]
        for part in ("delta", "ci_low", "ci_high", "p_holm")
    }
    return {name: value for name, value in numbers.items() if value is not None}


def runs_elsewhere(sweep: Sweep, project: str) -> list[str]:
    """Return notes on runs that the panels lack: not logged to W&B, or logged to another project."""
    entries = [run.record.get("tracking") or {} for run in sweep.runs]
    paths = [str(entry["path"]) for entry in entries if entry.get("tracker") == "wandb" and entry.get("path")]
    others = {path.split("/")[-2] for path in paths} - {project}
    notes = []
    if len(paths) < len(entries):
        absent = len(entries) - len(paths)
        notes.append(f"{absent} of {len(entries)} runs were not logged to W&B, so its panels lack them")
    if others:
        notes.append(f"runs were logged to project {', '.join(sorted(others))}, not {project}: set tracking.project")
    return notes


def save(report: Report, tracking: Mapping[str, Any]) -> str:
    """Write the W&B report to the sweep's folder and, if the run of the report is online, to the server.

    `tracking` is the entry `tracking` of the report's own run. Returns one line that says where the report is.
    """
    import wandb

    *entity, project, _ = tracking["path"].split("/")
    path = report.sweep.folder / FILE
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        saved = {name: earlier[name] for name in ("id", "url", "place")} if earlier["url"] else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        saved = {}
    content = wandb_report.spec(wandb_report.build(report.table, project, ""))
    content = {"url": None, "place": None, **content, **saved}
    write_json(path, content)
    if tracking["mode"] != "online":
        reason = tracking["reason"] or tracking["mode"]
        return f"{path}: the W&B report, not on a server ({reason}); repeat this command when W&B is online"
    place = f"{entity[0]}/{project}"
    try:
        built = wandb_report.build(report.table, project, entity[0])
        if saved.get("place") == place:
            built.id = saved["id"]
        with contextlib.redirect_stderr(io.StringIO()):  # wandb prints the address
            built.save()
    except Exception as error:  # wandb-workspaces raises plain ones
        return f"{path}: the W&B report; {wandb.setup().settings.base_url} rejected it: {one_line(error)}"
    finally:
        wandb.teardown()
    write_json(path, {**content, "id": built.id, "url": built.url, "place": place})
    return str(built.url)
