"""The table as text: terminal, Markdown and CSV, with the columns of the published table first."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tometune.evaluation.metrics import label
from tometune.reporting.conclusions import LIMIT, answers, cautions, published_answer

Values = Mapping[str, Any]


def columns(table: Values) -> list[str]:
    """Return the head of the table: model, data, seeds, then the mean and the deviation of each metric."""
    return ["model", "data", "seeds", *map(label, table["metrics"]), *map(sd_label, table["metrics"])]


def sd_label(metric: str) -> str:
    """Return the head of a column of deviations: `sd 1` for ROUGE-1, else `sd` and the metric's name."""
    return f"sd {label(metric).removeprefix('ROUGE-')}"


def cells(row: Values, table: Values) -> list[str]:
    """Return the texts of a row in the order of `columns`; unknown values are a dash."""
    means = [f"{row[metric]['mean']:.3f}" for metric in table["metrics"]]
    deviations = [deviation_label(row[metric]["std"]) for metric in table["metrics"]]
    return [row["model"], data_label(row), seeds_label(row), *means, *deviations]


def deviation_label(deviation: float | None) -> str:
    """Format a deviation; an unknown one is a dash, and a small one is not rounded to zero."""
    if deviation is None:
        return "–"
    return "<0.001" if 0 < deviation < 0.0005 else f"{deviation:.3f}"


def data_label(row: Values) -> str:
    """Name a cell within its model: the data and the settings that differ."""
    if row["stage"] == "base":
        return "base model"
    return " ".join([row["data"], *(f"{key}={value}" for key, value in row["settings"].items())])


def seeds_label(row: Values) -> str:
    """Return the number of seeds, or `2/3` if runs are missing."""
    if row["stage"] == "base":
        return "–"
    return str(row["seeds"]) if row["seeds"] == row["seeds_expected"] else f"{row['seeds']}/{row['seeds_expected']}"


def as_markdown(table: Values) -> str:
    """Return the table, the answers and the cautions as Markdown."""
    lines = [f"# {table['sweep']}", ""]
    lines += [f"**{LIMIT}.**", ""] if table["limited"] else []
    lines += [markdown_rows(table), ""]
    lines += [f"sd: standard deviation over seeds (n − 1). {table['family']}.", ""]
    for answer in answers(table):
        lines += [f"**{answer.question}** {answer.verdict} {' '.join(answer.sentences)}", ""]
    lines += [f"For comparison: {published_answer(table['interval']['confidence'])}", ""]
    lines += [f"- {text}" for text in cautions(table)]
    lines += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def markdown_rows(table: Values) -> str:
    """Return the rows and their head as a Markdown table."""
    head = columns(table)
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *(cells(row, table) for row in table["rows"])]
    return "\n".join(markdown_line(line) for line in lines)


def markdown_line(texts: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def as_csv(table: Values) -> str:
    """Return the table with full numbers and intervals; unknown values are empty, missing runs have their own lines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = [(metric, part) for part in ("mean", "std", "ci_low", "ci_high") for metric in table["metrics"]]
    suffixes = {"mean": "", "std": "_sd", "ci_low": "_low", "ci_high": "_high"}
    names = [metric + suffixes[part] for metric, part in parts]
    writer.writerow(["model", "data", "rows", "seeds", *names, "note"])
    mark = "LIMIT" if table["limited"] else ""
    for row in table["rows"]:
        numbers = [row[metric][part] for metric, part in parts]
        writer.writerow([row["model"], data_label(row), row["rows"], row["seeds"], *numbers, mark])
    for entry in table["missing"]:
        note = f"missing: {entry['run_id']}: {entry['reason']}"
        writer.writerow([entry["model"], entry["data"], "", 0, *[""] * len(names), note])
    return out.getvalue()


def print_report(table: Values, console: Console | None = None) -> None:
    """Print the table, the answers and the cautions."""
    console = console or Console()
    title = f"[bold red]{LIMIT}[/]\n{table['sweep']}" if table["limited"] else table["sweep"]
    grid = RichTable(title=title, caption=table["family"], box=SIMPLE_HEAD, show_edge=False)
    grid.padding, grid.pad_edge = (0, 1, 0, 0), False  # names of 12 and 10 letters fit into 80 columns
    for number, name in enumerate(columns(table)):
        left = number < 2
        grid.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in table["rows"]:
        grid.add_row(*map(escape, cells(row, table)), style="dim" if row["stage"] == "base" else None)
    console.print(grid)
    for answer in answers(table):
        text = f"[bold]{escape(answer.question)} {answer.verdict}[/] {escape(' '.join(answer.sentences))}\n"
        console.print(text, highlight=False)
    for text in cautions(table):
        console.print(f"[yellow]![/] {escape(text)}", highlight=False)
    for entry in table["missing"]:
        console.print(f"[yellow]missing[/] {escape(entry['run_id'])}: {escape(entry['reason'])}", highlight=False)
