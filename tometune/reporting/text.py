"""The table as text: terminal, Markdown, CSV, with the published table's columns."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tometune.reporting.conclusions import LIMIT, answers, cautions, published_answer
from tometune.reporting.scores import METRICS

COLUMNS = ("model", "data", "seeds", "ROUGE-1", "ROUGE-2", "ROUGE-L", "sd 1", "sd 2", "sd L")

Values = Mapping[str, Any]


def cells(row: Values) -> list[str]:
    """Return a row's texts, in the order of `COLUMNS`; what is unknown is a dash."""
    means = [f"{row[metric]['mean']:.3f}" for metric in METRICS]
    deviations = [deviation_label(row[metric]["std"]) for metric in METRICS]
    return [row["model"], data_label(row), seeds_label(row), *means, *deviations]


def deviation_label(deviation: float | None) -> str:
    """Return a deviation as text; an unknown one is a dash, and a small one is not rounded to none."""
    if deviation is None:
        return "–"
    return "<0.001" if 0 < deviation < 0.0005 else f"{deviation:.3f}"


def data_label(row: Values) -> str:
    """Name a cell within its model: the data and what else differs."""
    return " ".join([row["data"], *(f"{key}={value}" for key, value in row["settings"].items())])


def seeds_label(row: Values) -> str:
    """Say how many seeds a row is over, and of how many."""
    if row["stage"] == "base":
        return "–"
    return str(row["seeds"]) if row["seeds"] == row["seeds_expected"] else f"{row['seeds']}/{row['seeds_expected']}"


def as_markdown(table: Values) -> str:
    """Return the table, the answers and what to know beside them."""
    lines = [f"# {table['sweep']}", ""]
    lines += [f"**{LIMIT}.**", ""] if table["limited"] else []
    lines += [markdown_rows(table), ""]
    lines += [f"sd: over seeds (n - 1). {table['family']}.", ""]
    for answer in answers(table):
        lines += [f"**{answer.question}** {answer.verdict} {' '.join(answer.sentences)}", ""]
    lines += [f"Published, for comparison. {published_answer(table['interval']['confidence'])}", ""]
    lines += [f"- {text}" for text in cautions(table)]
    lines += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def markdown_rows(table: Values) -> str:
    """Return the rows and their head as a Markdown table."""
    head = [_line(COLUMNS), _line(["---"] * 3 + ["---:"] * 6)]
    return "\n".join([*head, *(_line(cells(row)) for row in table["rows"])])


def _line(texts: Any) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def as_csv(table: Values) -> str:
    """Return the table with full numbers and intervals; what is unknown is empty, a missing cell a line of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = [("mean", ""), ("std", "_sd"), ("ci_low", "_low"), ("ci_high", "_high")]
    names = [f"{metric}{suffix}" for _, suffix in parts for metric in METRICS]
    writer.writerow(["model", "data", "rows", "seeds", *names, "note"])
    mark = "LIMIT" if table["limited"] else ""
    for row in table["rows"]:
        numbers = [row[metric][part] for part, _ in parts for metric in METRICS]
        writer.writerow([row["model"], data_label(row), row["rows"], row["seeds"], *numbers, mark])
    for entry in table["missing"]:
        note = f"missing: {entry['run_id']}: {entry['reason']}"
        writer.writerow([entry["model"], entry["data"], "", 0, *[""] * len(names), note])
    return out.getvalue()


def print_report(table: Values, console: Console | None = None) -> None:
    """Print the table and the answers."""
    console = console or Console()
    mark = f"[bold red]{LIMIT}[/]\n" if table["limited"] else ""
    shown = RichTable(
        title=f"{mark}{table['sweep']}",
        box=SIMPLE_HEAD,
        caption=table["family"],
        padding=(0, 1, 0, 0),  # names of 12 and 10 letters fit into 80 columns
        pad_edge=False,
        show_edge=False,
    )
    for number, name in enumerate(COLUMNS):
        left = number < 2
        shown.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in table["rows"]:
        shown.add_row(*map(escape, cells(row)), style="dim" if row["stage"] == "base" else None)
    console.print(shown)
    for answer in answers(table):
        console.print(
            f"[bold]{escape(answer.question)} {answer.verdict}[/] {escape(' '.join(answer.sentences))}\n",
            highlight=False,
        )
    for text in cautions(table):
        console.print(f"[yellow]![/] {escape(text)}", highlight=False)
    for entry in table["missing"]:
        console.print(f"[yellow]missing[/] {escape(entry['run_id'])}: {escape(entry['reason'])}", highlight=False)
