"""Publishes a report to W&B: as a run of the sweep's group, and as a W&B report over the sweep's runs."""

import contextlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tometune.common.files import write_json
from tometune.config.tracking import TrackingConfig
from tometune.reporting import wandb_report
from tometune.reporting.conclusions import LABELS, answers, cautions
from tometune.reporting.page import picture_page, pictures
from tometune.reporting.report import Report
from tometune.reporting.scores import METRICS
from tometune.reporting.sweep import Sweep
from tometune.reporting.text import COLUMNS, cells
from tometune.reporting.wandb_report import COMPARISONS, PAGE, TABLE
from tometune.tracking import start_tracker
from tometune.tracking.base import RunTracker

FILE = "wandb_report.json"
"""Name of the report's specification in the sweep's folder."""

Columns = tuple[list[str], list[list[Any]]]


def publish(report: Report, tracking: TrackingConfig) -> list[str]:
    """Log the report as a run of the sweep's group, then save the W&B report; returns lines that say where both are.

    Raises:
        UserError: `tracking.mode=online` and the server cannot be reached.
    """
    table = report.table
    with start_tracker(
        tracking,
        run_id=wandb_report.run_id(table["sweep"]),
        job_type=wandb_report.JOB_TYPE,
        group=table["sweep"],
        folder=report.sweep.folder,
        run_config={name: table[name] for name in ("sweep", "interval", "tasks", "limited")},
        replaces=True,
    ) as tracker:
        log_report(tracker, report)
    described = tracker.describe()
    lines = [*not_there(report.sweep, tracking.project), described["url"] or described["sync"], save(report, described)]
    return [line for line in lines if line]


def log_report(tracker: RunTracker, report: Report) -> None:
    """Log the report: numbers in the summary, two tables, one page a picture, the page."""
    table = report.table
    tracker.summary({**row_numbers(table), **comparison_numbers(table), **words(table)})
    tracker.table(TABLE, *table_rows(table))
    if table["comparisons"]:
        tracker.table(COMPARISONS, *comparison_rows(table))
    for name, picture in pictures(report.grid, table).items():
        if picture is not None:
            tracker.page(f"picture/{name}", picture_page(picture))
    tracker.page(PAGE, (report.sweep.folder / "report.html").read_text(encoding="utf-8"))


def table_rows(table: Mapping[str, Any]) -> Columns:
    """Return the published table's columns, then the intervals; numbers are numbers, what is unknown is empty."""
    ends = [f"{LABELS[metric]} {end}" for metric in METRICS for end in ("from", "to")]
    rows = [
        [
            *cells(row)[:3],
            *(row[metric][part] for part in ("mean", "std") for metric in METRICS),
            *(row[metric][end] for metric in METRICS for end in ("ci_low", "ci_high")),
        ]
        for row in table["rows"]
    ]
    return [*COLUMNS, *ends], rows


def comparison_rows(table: Mapping[str, Any]) -> Columns:
    """Return one row a test."""
    columns = ["a", "b", "metric", "delta", "ci_low", "ci_high", "p", "p_holm", "interval_over"]
    return columns, [[entry[column] for column in columns] for entry in table["comparisons"]]


def row_numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """Return mean and deviation of each cell: `cell/pydocs_1k/rouge1/mean`."""
    return {
        f"cell/{key(row['cell'])}/{metric}/{part}": row[metric][part]
        for row in table["rows"]
        for metric in METRICS
        for part in ("mean", "std")
        if row[metric][part] is not None
    }


def comparison_numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """Return difference, interval and corrected p of each test: `difference/pydocs_3k-pydocs_1k/rouge1/delta`."""
    return {
        f"difference/{key(entry['a'])}-{key(entry['b'])}/{entry['metric']}/{part}": entry[part]
        for entry in table["comparisons"]
        for part in ("delta", "ci_low", "ci_high", "p_holm")
        if entry[part] is not None
    }


def words(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the answers and what to know beside them, as text."""
    told = "\n\n".join(" ".join([each.question, each.verdict, *each.sentences]) for each in answers(table))
    return {"answers": told or "There is nothing to compare.", "cautions": "\n".join(cautions(table))}


def key(label: str) -> str:
    """Return a label as part of a summary key: dots would nest, slashes would group."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", label)


def not_there(sweep: Sweep, project: str) -> list[str]:
    """Say which runs the panels will lack: those that were not logged to W&B, or to another project."""
    places = {run.id: run.record.get("tracking") or {} for run in sweep.runs}
    absent = [name for name, place in places.items() if place.get("tracker") != "wandb" or not place.get("path")]
    elsewhere = {str(place["path"]).split("/")[-2] for name, place in places.items() if name not in absent} - {project}
    told = []
    if absent:
        told.append(f"{len(absent)} of {len(places)} runs were not logged to W&B: its panels are without them")
    if elsewhere:
        told.append(f"runs were logged to project {', '.join(sorted(elsewhere))}, not {project}: set tracking.project")
    return told


# isort: split

FILE = "wandb_report.json"
"""Name of the report's specification in the sweep's folder."""


def save(report: Report, tracking: Mapping[str, Any]) -> str:
    """Build the W&B report, write it to the sweep's folder and, if the run of the report is online, to the server.

    Args:
        report: what it is about.
        tracking: how the report's own run was tracked, as in run.json: mode, reason, path.

    Returns:
        One line that says where it is.
    """
    *entity, project, _ = tracking["path"].split("/")
    path = report.sweep.folder / FILE
    built = wandb_report.build(report.table, project, "")
    before = _before(path)
    content = {"url": None, "place": None, **wandb_report.spec(built), **before}
    write_json(path, content)
    if tracking["mode"] != "online":
        reason = tracking["reason"] or tracking["mode"]
        return f"{path}: the W&B report; not on a server ({reason}), the same command saves it when W&B is online"
    import wandb

    from tometune.tracking.wandb_setup import one_line

    try:
        saved = _send(wandb_report.build(report.table, project, entity[0]), before, f"{entity[0]}/{project}")
    except Exception as error:  # wandb-workspaces raises plain ones
        return f"{path}: the W&B report; {wandb.setup().settings.base_url} did not take it: {one_line(error)}"
    finally:
        wandb.teardown()
    write_json(path, {**content, **saved})
    return str(saved["url"])


def _send(built: Any, before: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Save a report on the server, in the place of the one that was saved there before."""
    if before.get("place") == place:
        built.id = before["id"]
    with contextlib.redirect_stderr(io.StringIO()):  # it prints where it is
        built.save()
    return {"id": built.id, "url": built.url, "place": place}


def _before(path: Path) -> dict[str, Any]:
    """Return where an earlier report was saved; empty where there was none, or no server had it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("id", "url", "place")} if found["url"] else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
