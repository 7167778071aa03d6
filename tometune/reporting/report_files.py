"""A report in its formats: table.json, .csv and .md, report.html, and the table on the terminal."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tometune.common.errors import some
from tometune.common.files import write_json, write_text
from tometune.evaluation.metrics import averaged, label
from tometune.reporting import figures, mix_figures
from tometune.reporting.analysis import Report
from tometune.reporting.cautions import cautions
from tometune.reporting.conclusions import (
    LIMIT,
    NOTHING_TO_COMPARE,
    answers,
    data_label,
    models,
    p_value,
    signed,
)
from tometune.reporting.controls import control_sentences, large
from tometune.reporting.html import address, draw, environment, markdown_line
from tometune.reporting.published import PUBLISHED, over_own_file, published, published_answer
from tometune.reporting.score_files import ROUGE

SHORT = 22  # letters of a model and its data that fit into 80 columns next to three metrics
CROWDED = 12  # loss curves are drawn for at most this many cells

Values = Mapping[str, Any]


def write(report: Report, cards: Mapping[str, Path] | None = None) -> Path:
    """Write table.{json,csv,md} and report.html, with links to `cards`, into the sweep's folder; returns the page."""
    folder = report.sweep.folder
    write_json(folder / "table.json", report.table)
    write_text(folder / "table.csv", as_csv(report.table))
    write_text(folder / "table.md", as_markdown(report.table))
    write_text(folder / "report.html", as_html(report, cards))
    return folder / "report.html"


def columns(table: Values) -> list[str]:
    """Return the head of the table: model, data, seeds, then the mean and the deviation of each metric."""
    return ["model", "data", "seeds", *map(label, table["metrics"]), *map(sd_label, table["metrics"])]


def sd_label(metric: str) -> str:
    """Return the head of a column of deviations: `sd 1` for ROUGE-1, else `sd` and the metric's name."""
    return f"sd {label(metric).removeprefix('ROUGE-')}"


def row_texts(row: Values, table: Values) -> list[str]:
    """Return the texts of a row in the order of `columns`; unknown values are a dash."""
    means = [f"{row[metric]['mean']:.3f}" for metric in table["metrics"]]
    deviations = [deviation_label(row[metric]["std"]) for metric in table["metrics"]]
    return [row["model"], data_label(row), seeds_label(row), *means, *deviations]


def deviation_label(deviation: float | None) -> str:
    """Format a deviation; an unknown one is a dash, and a small one is not rounded to zero."""
    if deviation is None:
        return "–"
    return "<0.001" if 0 < deviation < 0.0005 else f"{deviation:.3f}"


def seeds_label(row: Values) -> str:
    """Return the number of seeds, or `2/3` if runs are missing."""
    if row["stage"] == "base":
        return "–"
    return str(row["seeds"]) if row["seeds"] == row["seeds_expected"] else f"{row['seeds']}/{row['seeds_expected']}"


def as_markdown(table: Values) -> str:
    """Return the table, the answers and the cautions as Markdown."""
    head = columns(table)
    rows = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *(row_texts(row, table) for row in table["rows"])]
    lines = [f"# {table['sweep']}", ""]
    lines += [f"**{LIMIT}.**", ""] if table["limited"] else []
    lines += [*map(markdown_line, rows), ""]
    lines += [f"sd: standard deviation over seeds (n − 1). {table['family']}.", ""]
    if sentences := control_sentences(table):
        lines += [" ".join(sentences), ""]
    for answer in answers(table):
        lines += [f"**{answer.question}** {answer.verdict} {' '.join(answer.sentences)}", ""]
    if not over_own_file(table):
        lines += [f"For comparison: {published_answer(table['interval']['confidence'])}", ""]
    lines += [f"- {text}" for text in cautions(table)]
    lines += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return "\n".join(lines).rstrip() + "\n"


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
    table = {**table, "metrics": [metric for metric in table["metrics"] if "/" not in metric]}  # those of single tasks
    title = f"[bold red]{LIMIT}[/]\n{table['sweep']}" if table["limited"] else table["sweep"]
    names = [len(row["model"] + data_label(row)) for row in table["rows"]]
    first = int(len(models(table)) == 1 and max(names) > SHORT)  # the title names the only model
    title += f", {models(table)[0]}" * first
    metrics = table["metrics"]
    at_once = len(metrics) if console.width >= max(names) + 16 * (len(metrics) + 1) else 3
    for start in range(0, len(metrics), at_once):
        part = {**table, "metrics": metrics[start : start + at_once]}
        grid = RichTable(title=None if start else title, box=SIMPLE_HEAD, show_edge=False)
        grid.padding, grid.pad_edge = (0, 1, 0, 0), False
        for name in columns(part)[first:]:
            left = name in ("model", "data")
            grid.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for row in table["rows"]:
            grid.add_row(*map(escape, row_texts(row, part)[first:]), style="dim" if row["stage"] == "base" else None)
        console.print(grid)
    console.print(f"[dim italic]{table['family']}[/]\n", highlight=False)
    for answer in answers(table):
        text = f"[bold]{escape(answer.question)} {answer.verdict}[/] {escape(' '.join(answer.sentences))}\n"
        console.print(text, highlight=False)
    if sentences := control_sentences(table):
        console.print(escape(" ".join(sentences)) + "\n", highlight=False)
    for text in cautions(table):
        console.print(f"[yellow]![/] {escape(text)}", highlight=False)
    for entry in table["missing"]:
        console.print(f"[yellow]missing[/] {escape(entry['run_id'])}: {escape(entry['reason'])}", highlight=False)


def as_html(report: Report, cards: Mapping[str, Path] | None = None) -> str:
    """Return report.html as text; the page loads no other file."""
    table, cells = report.table, [cell for cell in report.cells if cell.runs]
    names, folder = models(table), report.sweep.folder
    runs = [run for cell in report.cells for run in [*cell.runs.values(), *cell.stream_runs]]
    mixes = list(dict.fromkeys(row["data"] for row in table["rows"] if row["stage"] == "tuned"))
    dates = [str(run.record["finished"])[:10] for run in report.sweep.runs if run.record.get("finished")]
    about = f"{some(names, 4)} on {some(mixes, 4)}{' · ' + max(dates) if dates else ''}"
    versions: dict[str, set[str]] = {}
    for run in report.sweep.runs:
        commit = str((run.record.get("git") or {}).get("commit") or "")[:10]
        for name, version in {**run.record.get("versions", {}), **({"commit": commit} if commit else {})}.items():
            versions.setdefault(name, set()).add(str(version))
    templates = environment()
    templates.filters |= {
        "data": data_label,
        "label": label,
        "p": lambda value: p_value(value).removeprefix("p ").removeprefix("= "),
        "score": lambda value: "–" if value is None else f"{value:.3f}",
        "sd": deviation_label,
        "large": large,
        "sd_label": sd_label,
        "seeds": seeds_label,
        "signed": signed,
    }
    text = templates.get_template("report.html.jinja").render(
        table=table,
        rouge=ROUGE,
        limit=LIMIT,
        nothing=NOTHING_TO_COMPARE,
        answers=answers(table),
        published_answer=None if over_own_file(table) else published_answer(table["interval"]["confidence"]),
        published=PUBLISHED,
        cautions=cautions(table),
        controls=control_sentences(table),
        pictures={
            "means": draw(figures.means, table),
            "forest": draw(figures.forest, table),
            "curve": draw(figures.curve, table),
            "tasks": draw(figures.tasks, table) if len(table["tasks"]) > 1 else None,
            "published": draw(published, table),
            "loss": draw(figures.loss, cells, names) if len(cells) <= CROWDED else None,
            "sources": draw(mix_figures.sources, cells),
        },
        about=about,
        cards=[(name, address(card, folder)) for name, card in (cards or {}).items()],
        records=[(f"{address(run.folder, folder)}/", run.record) for run in runs],
        versions=[f"{name} {' / '.join(sorted(found))}" for name, found in versions.items()],
        averaged={task: table["tasks"][task] for task in averaged(table["tasks"])},
        models=names,
    )
    return text.replace("ROUGE-", "ROUGE\N{NON-BREAKING HYPHEN}").replace(
        "p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )
