"""The W&B report of a sweep: the answers, the table, and panels over its runs.

Built with wandb-workspaces (https://github.com/wandb/wandb-workspaces); nothing here contacts a server.
"""

from collections.abc import Mapping
from typing import Any

import tometune.tracking.wandb_tracker  # noqa: F401 - before wandb, because it turns off error reporting
from tometune.evaluation.metrics import label
from tometune.reporting.conclusions import LIMIT, NOTHING_TO_COMPARE, answers, cautions
from tometune.reporting.text import markdown_rows
from tometune.tracking.tracker import sanitise

# isort: split
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

WIDTH = 24  # columns of a W&B panel grid
JOB_TYPE = "report"  # job type of the run that holds a report
TABLE, COMPARISONS, PAGE = "table", "comparisons", "report"  # in that run; its figures are `picture/<name>`

Table = Mapping[str, Any]


def run_id(sweep: str) -> str:
    """Return the id of the run that holds a sweep's report; always the same, so that a later report replaces it."""
    return f"{JOB_TYPE}-{sweep}"


def build(table: Table, project: str, entity: str) -> wr.Report:
    """Return the report.

    Args:
        table: the content of table.json.
        project: W&B project of the runs.
        entity: their user or team; with "", the runs are looked up in the report's own project.
    """

    def runset(name: str, ids: list[str]) -> wr.Runset:
        where = {"project": project, "entity": entity} if entity else {}
        return wr.Runset(name=name, filters=[expr.Metric("ID").isin([sanitise(each, 64) for each in ids])], **where)

    by_model: dict[str, list[str]] = {}
    for row in table["rows"]:
        by_model.setdefault(row["model"], []).extend(run["run_id"] for run in row["runs"])
    runs = [runset(model, ids) for model, ids in by_model.items() if ids]
    own = runset("report", [run_id(table["sweep"])])
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDTH, h=14))
    deviation = f"sd: standard deviation over seeds (n − 1). {table['family']}."
    found = answers(table)
    texts = [f"**{LIMIT}.**"] if table["limited"] else []
    texts += [f"### {each.question} {each.verdict}\n\n{' '.join(each.sentences)}" for each in found]
    texts += [] if found else [NOTHING_TO_COMPARE]
    notes = [f"- {text}" for text in cautions(table)]
    notes += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return wr.Report(
        project=project,
        entity=entity,
        title=f"Sweep {table['sweep']}",  # part of the address, where a question mark would end it
        description=f"{found[0].question} {found[0].verdict}" if found else NOTHING_TO_COMPARE,
        blocks=[
            wr.MarkdownBlock("\n\n".join([*texts, *(["\n".join(notes)] if notes else [])])),
            wr.H2("Scores"),
            wr.MarkdownBlock(f"{markdown_rows(table)}\n\n{deviation}"),
            wr.PanelGrid(runsets=runs, panels=_scores(table)),
            wr.H2("Training"),
            wr.PanelGrid(runsets=runs, panels=_training(table)),
            wr.H2("Run by run"),
            wr.PanelGrid(runsets=runs, panels=[comparer]),
            wr.H2("Intervals, comparisons and figures"),
            wr.PanelGrid(runsets=[own], panels=_pages(table)),
        ],
    )


def factors(table: Table) -> list[str]:
    """Return the config keys by which the cells differ, the data first; the data if nothing differs."""
    rows = [row for row in table["rows"] if row["stage"] == "tuned"]
    settings = dict.fromkeys(key for row in rows for key in row["settings"])
    several = len({row["data"] for row in rows}) > 1
    # W&B can group by a field, but not by the whole group `lora`.
    keys = ("lora.enabled" if key == "lora" else key for key in settings)
    return [*(["data.name"] if several or not settings else []), *keys]


def _scores(table: Table) -> list[Any]:
    """Return bars of means with deviations for each factor, and scores over the size of the data."""
    metrics = table["metrics"]
    width = max(WIDTH // len(metrics), WIDTH // 4)
    panels: list[Any] = [
        wr.BarPlot(
            title=f"{label(metric)} by {factor}: mean and standard deviation over runs",
            metrics=[f"eval/tuned/{metric}"],
            groupby=wr.Config(factor),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            orientation="v",
        )
        for factor in factors(table)
        for metric in metrics
    ]
    panels += [
        wr.ScatterPlot(
            title=f"{label(metric)} by rows of data, one dot per run",
            x=wr.SummaryMetric("data/rows"),
            y=wr.SummaryMetric(f"eval/tuned/{metric}"),
        )
        for metric in metrics
    ]
    for number, panel in enumerate(panels):
        panel.layout = _place(number, width)
    return panels


def _training(table: Table) -> list[Any]:
    """Return the loss, grouped by the first factor and run by run, and the throughput."""
    grouped = {"groupby": wr.Config(factors(table)[0]), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    loss = {"x": "Step", "y": ["train/loss"]}
    title = f"training loss by {factors(table)[0]}: mean, minimum and maximum"
    return [
        wr.LinePlot(title=title, layout=_place(0, 12, 9), **loss, **grouped),
        wr.LinePlot(title="training loss, one line per run", layout=_place(1, 12, 9), **loss),
        wr.BarPlot(
            title="training tokens per second",
            metrics=["train/tokens_per_second"],
            layout=wr.Layout(x=0, y=9, w=WIDTH, h=6),
            **grouped,
        ),
    ]


def _pages(table: Table) -> list[Any]:
    """Return the tables and the page of the report's own run."""
    names = [TABLE, *([COMPARISONS] if table["comparisons"] else [])]
    tables = [
        wr.WeavePanelSummaryTable(table_name=name, layout=_place(number, WIDTH)) for number, name in enumerate(names)
    ]
    layout = wr.Layout(x=0, y=8 * len(names), w=WIDTH, h=30)
    return [*tables, wr.MediaBrowser(title="The whole report", media_keys=[PAGE], num_columns=1, layout=layout)]


def _place(number: int, width: int, height: int = 8) -> wr.Layout:
    """Return the place of a panel in a grid that is filled line by line."""
    columns = WIDTH // width
    return wr.Layout(x=width * (number % columns), y=height * (number // columns), w=width, h=height)


def spec(report: wr.Report) -> dict[str, Any]:
    """Return the content that would be sent, after reading it back as W&B's own loader does.

    Raises:
        ValueError: a block does not survive that.
    """
    model = report._to_model()
    content: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    loaded = type(report)._from_model(type(model).model_validate(content))
    written, read = ([type(block).__name__ for block in each.blocks] for each in (report, loaded))
    if written != read:
        raise ValueError(f"the W&B report is not read back as it was written: {read}, not {written}")
    return content
