"""The run that stands for a whole sweep: its table, its comparisons, its pictures, its page."""

import re
from collections.abc import Mapping
from typing import Any

from tometune.reporting.page import picture_page, pictures
from tometune.reporting.phrases import LABELS
from tometune.reporting.report import Report
from tometune.reporting.scores import METRICS
from tometune.reporting.sweep import Sweep
from tometune.reporting.tables import COLUMNS, cells
from tometune.reporting.words import answers, cautions
from tometune.tracking.base import RunTracker

JOB_TYPE = "report"
"""Job type of such a run."""

TABLE, COMPARISONS, PAGE = "table", "comparisons", "report"
"""Names of what it logs; pictures are `picture/<name>`."""

Columns = tuple[list[str], list[list[Any]]]


def run_id(sweep: str) -> str:
    """Name the run of a sweep's report; the same each time, so that a second report takes the first one's place."""
    return f"{JOB_TYPE}-{sweep}"


def facts(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands in the place of a config: what the report is of."""
    return {name: table[name] for name in ("sweep", "interval", "tasks", "limited")}


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
