"""Publishes a report to W&B: as a run of the sweep's group, and as a W&B report with panels over the sweep's runs.

The W&B report is built with wandb-workspaces (https://github.com/wandb/wandb-workspaces).
"""

import contextlib
import io
import json
import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import tometune.tracking.wandb_tracker  # noqa: F401 - before wandb, because it turns off error reporting
from tometune.common.errors import one_line
from tometune.common.files import write_json
from tometune.config.tracking import TrackingConfig
from tometune.evaluation.metrics import label
from tometune.reporting.analysis import Report
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import NOTHING_TO_COMPARE, Table, answers, tuned_rows
from tometune.reporting.report_files import as_markdown, columns, row_texts
from tometune.reporting.sweep import Sweep
from tometune.tracking.tracker import RunLabels, RunTracker, flatten, sanitise, start_tracker

# isort: split
import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

FILE = "wandb_report.json"  # the W&B report's specification in the sweep's folder
WIDTH = 24  # columns of a panel grid; W&B's package moves panels that overlap to the next free place
JOB_TYPE = "report"  # job type of the run that holds a report
GPU = ["system/gpu.0.gpu", "system/gpu.0.memoryAllocated"]  # see `tracking.system`
TABLE, COMPARISONS, PAGE = "table", "comparisons", "report"  # names of what that run logs


def publish(report: Report, tracking: TrackingConfig) -> list[str]:
    """Log the report as a run of the sweep's group, then save the W&B report; returns lines that say where both are.

    The id of that run is always the same, so that a later report replaces it.

    Raises:
        UserError: the mode is `online` and that is not possible.
    """
    table, folder = report.table, report.sweep.folder
    facts = {name: table[name] for name in ("sweep", "interval", "tasks", "limited")}
    labels = RunLabels(f"{JOB_TYPE}-{table['sweep']}", JOB_TYPE, table["sweep"], folder, facts, replaces=True)
    with start_tracker(tracking, labels) as tracker:
        log_report(tracker, report)
    described = tracker.describe()
    if "path" not in described:
        return [f"not published: {described.get('reason') or 'W&B does not say where the run is'}"]
    lines = [*runs_elsewhere(report.sweep, tracking.project), described["url"] or described["sync"]]
    return [line for line in [*lines, _save(report, described)] if line]


def log_report(tracker: RunTracker, report: Report) -> None:
    """Log numbers and answers in the summary, two tables (unknown values are None), and the page."""
    table, metrics = report.table, report.table["metrics"]
    text = "\n\n".join(" ".join([each.question, each.verdict, *each.sentences]) for each in answers(table))
    words = {"answers": text or NOTHING_TO_COMPARE, "cautions": "\n".join(cautions(table))}
    tracker.summary({**summary_numbers(table), **words})
    parts = [
        *product(("mean", "std"), metrics),
        *((end, metric) for metric in metrics for end in ("ci_low", "ci_high")),
    ]
    rows = [[*row_texts(row, table)[:3], *(row[metric][part] for part, metric in parts)] for row in table["rows"]]
    ends = [f"{label(metric)} {end}" for metric in metrics for end in ("from", "to")]
    tracker.table(TABLE, [*columns(table), *ends], rows)
    if table["comparisons"]:
        names = ["a", "b", "metric", "delta", "ci_low", "ci_high", "p", "p_holm", "interval_over"]
        tracker.table(COMPARISONS, names, [[entry[name] for name in names] for entry in table["comparisons"]])
    tracker.page(PAGE, (report.sweep.folder / "report.html").read_text(encoding="utf-8"))


def summary_numbers(table: Table) -> dict[str, float]:
    """Return the numbers by which W&B can compare sweeps.

    `cell/pydocs_1k/rouge1/mean` for each cell, and `difference/pydocs_3k-pydocs_1k/rouge1/delta` for each test.
    """
    key = partial(re.sub, r"[^A-Za-z0-9_-]+", "_")  # in a summary key, dots would nest and slashes would group
    cells = {key(row["cell"]): {metric: row[metric] for metric in table["metrics"]} for row in table["rows"]}
    differences: dict[str, dict[str, Any]] = {}
    for entry in table["comparisons"]:
        parts = {part: entry[part] for part in ("delta", "ci_low", "ci_high", "p_holm")}
        differences.setdefault(f"{key(entry['a'])}-{key(entry['b'])}", {})[entry["metric"]] = parts
    values = flatten({"cell": cells, "difference": differences}, "/").items()
    return {name: value for name, value in values if type(value) in (int, float)}


def runs_elsewhere(sweep: Sweep, project: str) -> list[str]:
    """Return notes on runs that the panels lack: not logged to W&B, or logged to another project."""
    entries = [run.record.get("tracking") or {} for run in sweep.runs]
    paths = [str(entry["path"]) for entry in entries if entry.get("tracker") == "wandb" and entry.get("path")]
    others = {path.split("/")[-2] for path in paths} - {project}
    notes = []
    if absent := len(entries) - len(paths):
        notes.append(f"{absent} of {len(entries)} runs were not logged to W&B, so its panels lack them")
    if others:
        notes.append(f"runs were logged to project {', '.join(sorted(others))}, not {project}: set tracking.project")
    return notes


def _save(report: Report, tracking: Mapping[str, Any]) -> str:
    """Write the W&B report to the sweep's folder and, if the run of the report is online, to the server.

    `tracking` is the entry `tracking` of the report's own run. Returns one line that says where the report is.
    """
    *entity, project, _ = tracking["path"].split("/")
    path, saved = report.sweep.folder / FILE, {}
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        earlier = json.loads(path.read_text(encoding="utf-8"))
        saved = {name: earlier[name] for name in ("id", "url", "place")} if earlier["url"] else {}
    content = {"url": None, "place": None, **specification(build(report.table, project, "")), **saved}
    write_json(path, content)
    if tracking["mode"] != "online":
        reason = tracking["reason"] or tracking["mode"]
        return f"{path}: the W&B report, not on a server ({reason}); repeat this command when W&B is online"
    place = f"{entity[0]}/{project}"
    try:
        built = build(report.table, project, entity[0])
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


def specification(report: wr.Report) -> dict[str, Any]:
    """Return the content of a W&B report as it is sent to the server."""
    content: dict[str, Any] = report._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return content


def build(table: Table, project: str, entity: str) -> wr.Report:
    """Return the W&B report. Without an entity (user or team), W&B looks the runs up in the report's own project."""

    def grid(panels: list[Any], runs: Mapping[str, list[str]]) -> wr.PanelGrid:
        where = {"project": project, "entity": entity} if entity else {}
        filters = {name: [expr.Metric("ID").isin([sanitise(each, 64) for each in ids])] for name, ids in runs.items()}
        sets = [wr.Runset(name=name, filters=found, **where) for name, found in filters.items()]
        return wr.PanelGrid(runsets=sets, panels=panels)

    by_model: dict[str, list[str]] = {}
    for row in tuned_rows(table):
        by_model.setdefault(row["model"], []).extend(run["run_id"] for run in row["runs"])
    found = answers(table)
    names = [TABLE, *([COMPARISONS] if table["comparisons"] else [])]
    own: list[Any] = [wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=WIDTH, h=8)) for name in names]
    page = wr.Layout(w=WIDTH, h=30)
    own.append(wr.MediaBrowser(title="The whole report", media_keys=[PAGE], num_columns=1, layout=page))
    compared = wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDTH, h=14))
    return wr.Report(
        project=project,
        entity=entity,
        title=f"Sweep {table['sweep']}",  # part of the address, where a question mark would end it
        description=f"{found[0].question} {found[0].verdict}" if found else NOTHING_TO_COMPARE,
        blocks=[
            wr.MarkdownBlock(as_markdown(table).partition("\n\n")[2]),  # without its heading
            wr.H2("Scores"),
            grid(_score_panels(table), by_model),
            wr.H2("Training"),
            grid(_training_panels(factors(table)[0]), by_model),
            wr.H2("Run by run"),
            grid([compared], by_model),
            wr.H2("Intervals, comparisons and figures"),
            grid(own, {"report": [f"{JOB_TYPE}-{table['sweep']}"]}),
        ],
    )


def factors(table: Table) -> list[str]:
    """Return the config keys in which the cells differ, `data.name` first; only `data.name` if nothing differs."""
    rows = tuned_rows(table)
    # W&B can group by a field, but not by the whole group `lora`.
    keys = dict.fromkeys("lora.enabled" if key == "lora" else key for row in rows for key in row["settings"])
    several = len({row["data"] for row in rows}) > 1
    return [*(["data.name"] if several or not keys else []), *keys]


def _score_panels(table: Table) -> list[Any]:
    """Return bars of means with deviations for each factor, and scores over the size of the data."""
    layout = wr.Layout(w=max(WIDTH // len(table["metrics"]), WIDTH // 4), h=8)
    bars: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "orientation": "v"}
    panels: list[Any] = []
    for stage, what in (("tuned", ""), ("gain", ", gain over the base model")):
        for factor, metric in product(factors(table), table["metrics"]):
            title = f"{label(metric)}{what} by {factor}: mean and standard deviation over runs"
            panel = {"title": title, "metrics": [f"eval/{stage}/{metric}"], "groupby": wr.Config(factor)}
            panels.append(wr.BarPlot(**panel, layout=layout, **bars))
    for metric in table["metrics"]:
        title = f"{label(metric)} by rows of data, one dot per run"
        axes = {"x": wr.SummaryMetric("data/rows"), "y": wr.SummaryMetric(f"eval/tuned/{metric}")}
        panels.append(wr.ScatterPlot(title=title, layout=layout, **axes))
    return panels


def _training_panels(factor: str) -> list[Any]:
    grouped = {"groupby": wr.Config(factor), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    loss: dict[str, Any] = {"x": "Step", "y": ["train/loss"]}
    rate: dict[str, Any] = {"title": "training tokens per second", "metrics": ["train/tokens_per_second"]}
    layout = wr.Layout(w=12, h=9)
    return [
        wr.LinePlot(title=f"training loss by {factor}: mean, minimum and maximum", layout=layout, **loss, **grouped),
        wr.LinePlot(title="training loss, one line per run", layout=layout, **loss),
        wr.LinePlot(title="evaluation loss", x="Step", y=["eval/loss"], layout=layout),
        wr.LinePlot(title="use of the GPU and of its memory, in percent", y=GPU, layout=layout),
        wr.BarPlot(layout=wr.Layout(w=WIDTH, h=6), **rate, **grouped),
    ]
