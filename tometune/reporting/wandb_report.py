"""The W&B report of a sweep: the answers in words, the table, and panels over the runs that are in it.

Built with wandb-workspaces (https://github.com/wandb/wandb-workspaces); nothing here asks a server.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tometune.tracking.wandb_setup  # noqa: F401 - before wandb, whose error reporting it turns off
from tometune.reporting.conclusions import LABELS, LIMIT, answers, cautions
from tometune.reporting.text import markdown_rows
from tometune.tracking.base import sanitise

# isort: split
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

WIDTH = 24
"""Columns of a W&B panel grid."""

JOB_TYPE = "report"
"""Job type of such a run."""

TABLE, COMPARISONS, PAGE = "table", "comparisons", "report"
"""Names of what it logs; pictures are `picture/<name>`."""

Table = Mapping[str, Any]


def run_id(sweep: str) -> str:
    """Name the run of a sweep's report; the same each time, so that a second report takes the first one's place."""
    return f"{JOB_TYPE}-{sweep}"


def build(table: Table, project: str, entity: str) -> wr.Report:
    """Return the report.

    Args:
        table: the content of table.json.
        project: W&B project of the runs.
        entity: their user or team; with "" the sets of runs are the report's own project's.
    """
    where = {"project": project, "entity": entity} if entity else {}
    blocks = [
        wr.MarkdownBlock(_words(table)),
        wr.H2("The table"),
        wr.MarkdownBlock(f"{markdown_rows(table)}\n\nsd: over seeds (n − 1). {table['family']}."),
        wr.H2("Scores"),
        wr.PanelGrid(runsets=_runs(table, where), panels=_scores(table)),
        wr.H2("Training"),
        wr.PanelGrid(runsets=_runs(table, where), panels=_training(table)),
        wr.H2("Run by run"),
        wr.PanelGrid(
            runsets=_runs(table, where),
            panels=[wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDTH, h=14))],
        ),
        wr.H2("Intervals, comparisons, pictures"),
        wr.PanelGrid(runsets=[_summary(table, where)], panels=_pages(table)),
    ]
    title = f"Sweep {table['sweep']}"  # part of the address, where a question mark would end it
    return wr.Report(project=project, entity=entity, title=title, description=_described(table), blocks=blocks)


def _words(table: Table) -> str:
    """Return the answers and what to know beside them as Markdown."""
    told = [f"**{LIMIT}.**"] if table["limited"] else []
    told += [f"### {each.question} {each.verdict}\n\n{' '.join(each.sentences)}" for each in answers(table)]
    told += [] if answers(table) else ["There is nothing to compare: no two cells of one model differ in one thing."]
    notes = [f"- {text}" for text in cautions(table)]
    notes += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return "\n\n".join([*told, *(["\n".join(notes)] if notes else [])])


def _described(table: Table) -> str:
    """Return one line for the list of reports."""
    first = answers(table)[:1]
    return f"{first[0].question} {first[0].verdict}" if first else "One cell, nothing to compare."


def _runs(table: Table, where: Mapping[str, str]) -> list[wr.Runset]:
    """Return a set of runs for each model: those that are in the table, by their ids."""
    found: dict[str, list[str]] = {}
    for row in table["rows"]:
        found.setdefault(row["model"], []).extend(sanitise(run["run_id"], 64) for run in row["runs"])
    return [
        wr.Runset(name=model, filters=[expr.Metric("ID").isin(ids)], **where) for model, ids in found.items() if ids
    ]


def _summary(table: Table, where: Mapping[str, str]) -> wr.Runset:
    """Return the set of the one run that holds the report."""
    identifier = sanitise(run_id(table["sweep"]), 64)
    return wr.Runset(name="report", filters=[expr.Metric("ID").isin([identifier])], **where)


def factors(table: Table) -> list[str]:
    """Return the config keys by which the cells differ, the data first; the data where nothing does."""
    rows = [row for row in table["rows"] if row["stage"] == "tuned"]
    settings = dict.fromkeys(key for row in rows for key in row["settings"])
    several = len({row["data"] for row in rows}) > 1
    # Of a group only its fields can be grouped by.
    keys = ("lora.enabled" if key == "lora" else key for key in settings)
    return [*(["data.name"] if several or not settings else []), *keys]


def _scores(table: Table) -> list[Any]:
    """Return, for each factor, bars of means with their deviations, and one dot a run over the size of the data."""
    width = WIDTH // len(LABELS)
    panels: list[Any] = []
    for factor in factors(table):
        panels += [
            wr.BarPlot(
                title=f"{label} by {factor}: mean and standard deviation over runs",
                metrics=[f"eval/tuned/{metric}"],
                groupby=wr.Config(factor),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                orientation="v",
                layout=_place(len(panels) + number, width),
            )
            for number, (metric, label) in enumerate(LABELS.items())
        ]
    panels += [
        wr.ScatterPlot(
            title=f"{label} by rows of data, one dot a run",
            x=wr.SummaryMetric("data/rows"),
            y=wr.SummaryMetric(f"eval/tuned/{metric}"),
            layout=_place(len(panels) + number, width),
        )
        for number, (metric, label) in enumerate(LABELS.items())
    ]
    return panels


def _training(table: Table) -> list[Any]:
    """Return the loss, grouped by the first factor and run by run, and the throughput."""
    factor = factors(table)[0]
    return [
        wr.LinePlot(
            title=f"training loss by {factor}: mean, least and most",
            x="Step",
            y=["train/loss"],
            groupby=wr.Config(factor),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=_place(0, 12, 9),
        ),
        wr.LinePlot(title="training loss, one line a run", x="Step", y=["train/loss"], layout=_place(1, 12, 9)),
        wr.BarPlot(
            title="tokens a second in training",
            metrics=["train/tokens_per_second"],
            groupby=wr.Config(factor),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=wr.Layout(x=0, y=9, w=WIDTH, h=6),
        ),
    ]


def _pages(table: Table) -> list[Any]:
    """Return the tables and the page that the report's own run holds."""
    names = [TABLE, *([COMPARISONS] if table["comparisons"] else [])]
    tables = [
        wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(x=0, y=8 * number, w=WIDTH, h=8))
        for number, name in enumerate(names)
    ]
    page = wr.MediaBrowser(
        title="The whole report",
        media_keys=[PAGE],
        num_columns=1,
        layout=wr.Layout(x=0, y=8 * len(names), w=WIDTH, h=30),
    )
    return [*tables, page]


def _place(number: int, width: int, height: int = 8) -> wr.Layout:
    """Return the place of a panel in a grid that is filled line by line."""
    columns = WIDTH // width
    return wr.Layout(x=width * (number % columns), y=height * (number // columns), w=width, h=height)


def spec(report: wr.Report) -> dict[str, Any]:
    """Return what would be sent, as plain values; reads it back first, as W&B's own code does when it loads a report.

    Raises:
        ValueError: a block does not survive that.
    """
    model = report._to_model()
    content: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    again = type(report)._from_model(type(model).model_validate(content))
    kinds: Sequence[Sequence[str]] = [[type(block).__name__ for block in each.blocks] for each in (report, again)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"the W&B report does not read back as what was written: {kinds[1]}, not {kinds[0]}")
    return content
