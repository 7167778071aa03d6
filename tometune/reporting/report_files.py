"""A report in its formats: table.json, .csv and .md, report.html, and the table on the terminal."""

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

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
from tometune.reporting.score_files import ROUGE
from tometune.runs.inputs import ADDED

SHORT = 22  # letters of a model and its data that fit into 80 columns next to three metrics
CROWDED = 12  # loss curves are drawn for at most this many cells

Values = Mapping[str, Any]


class PublishedRow(NamedTuple):
    """One row of the published table (Llama-3.2-3B-Instruct, 4 bits): ROUGE-1, -2 and -L over three runs."""

    data: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PUBLISHED = (
    PublishedRow("100k: FineTome-100k", (0.407, 0.163, 0.300), (0.012, 0.003, 0.007)),
    PublishedRow("200k: + 100k rows of The-Tome", (0.402, 0.157, 0.301), (0.019, 0.020, 0.009)),
    PublishedRow("300k: + 200k rows of The-Tome", (0.397, 0.146, 0.304), (0.019, 0.011, 0.006)),
)
PUBLISHED_ANSWER = (
    "300k vs. 100k in the published table: ROUGE-1 −0.010 (−0.049 to +0.029, p = 0.49), ROUGE-2 −0.017 (−0.042 to "
    "+0.008, p = 0.11), ROUGE-L +0.004 (−0.011 to +0.019, p = 0.50). The 95% intervals are Welch's, computed from the "
    "published means and standard deviations of three runs each, without correction. With such deviations, detecting a "
    "difference of 0.01 takes 8 to 41 runs per arm."
)


def published_answer(table: Values) -> str | None:
    """Return what the published table shows; None of a sweep over somebody's own file, of which it says nothing."""
    return None if any(ADDED in row["data"] for row in table["rows"]) else PUBLISHED_ANSWER


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
    scores = [row[metric] for metric in table["metrics"]]
    means, deviations = [f"{each['mean']:.3f}" for each in scores], [deviation_label(each["std"]) for each in scores]
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
    for question, verdict, sentences in answers(table):
        lines += [f"**{question}** {verdict} {' '.join(sentences)}", ""]
    if answer := published_answer(table):
        lines += [f"For comparison: {answer}", ""]
    lines += [f"- {text}" for text in cautions(table)]
    lines += [f"- Missing: {entry['run_id']} ({entry['reason']})" for entry in table["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(table: Values) -> str:
    """Return the table with full numbers and intervals; unknown values are empty, missing runs have their own lines."""
    out, suffixes = io.StringIO(), {"mean": "", "std": "_sd", "ci_low": "_low", "ci_high": "_high"}
    parts = {f"{metric}{suffixes[part]}": (metric, part) for part in suffixes for metric in table["metrics"]}
    writer = csv.DictWriter(out, ["model", "data", "rows", "seeds", *parts, "note"], lineterminator="\n")
    writer.writeheader()
    for row in table["rows"]:
        about = {"model": row["model"], "data": data_label(row), "rows": row["rows"], "seeds": row["seeds"]}
        numbers = {name: row[metric][part] for name, (metric, part) in parts.items()}
        writer.writerow({**about, **numbers, "note": "LIMIT" if table["limited"] else ""})
    for entry in table["missing"]:
        note = f"missing: {entry['run_id']}: {entry['reason']}"
        writer.writerow({"model": entry["model"], "data": entry["data"], "seeds": 0, "note": note})
    return out.getvalue()


def print_report(table: Values, console: Console | None = None) -> None:
    """Print the table, the answers and the cautions."""
    console = console or Console()
    table = {**table, "metrics": [metric for metric in table["metrics"] if "/" not in metric]}  # those of single tasks
    for grid in _grids(table, console.width):
        console.print(grid)
    console.print(f"[dim italic]{table['family']}[/]\n", highlight=False)
    found = answers(table)
    lines = [f"[bold]{escape(f'{asked} {verdict}')}[/] {escape(' '.join(why))}\n" for asked, verdict, why in found]
    if controls := control_sentences(table):
        lines.append(escape(" ".join(controls)) + "\n")
    lines += [f"[yellow]![/] {escape(text)}" for text in cautions(table)]
    lines += [f"[yellow]missing[/] {escape(each['run_id'])}: {escape(each['reason'])}" for each in table["missing"]]
    for line in lines:
        console.print(line, highlight=False)


def _grids(table: Values, width: int) -> Iterator[RichTable]:
    """Yield the table for the terminal, in several parts if all metrics do not fit next to each other."""
    title = f"[bold red]{LIMIT}[/]\n{table['sweep']}" if table["limited"] else table["sweep"]
    longest = max(len(row["model"] + data_label(row)) for row in table["rows"])
    first = int(len(models(table)) == 1 and longest > SHORT)  # the title names the only model
    title += f", {models(table)[0]}" * first
    metrics = table["metrics"]
    at_once = len(metrics) if width >= longest + 16 * (len(metrics) + 1) else 3
    for start in range(0, len(metrics), at_once):
        part = {**table, "metrics": metrics[start : start + at_once]}
        grid = RichTable(title=None if start else title, box=SIMPLE_HEAD, show_edge=False)
        grid.padding, grid.pad_edge = (0, 1, 0, 0), False
        for name in columns(part)[first:]:
            left = name in ("model", "data")
            grid.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for row in table["rows"]:
            grid.add_row(*map(escape, row_texts(row, part)[first:]), style="dim" if row["stage"] == "base" else None)
        yield grid


def as_html(report: Report, cards: Mapping[str, Path] | None = None) -> str:
    """Return report.html as text; the page loads no other file."""
    table, cells = report.table, [cell for cell in report.cells if cell.runs]
    names, folder = models(table), report.sweep.folder
    runs = [run for cell in report.cells for run in [*cell.runs.values(), *cell.stream_runs]]
    mixes = list(dict.fromkeys(row["data"] for row in table["rows"] if row["stage"] == "tuned"))
    dates = [str(run.record["finished"])[:10] for run in report.sweep.runs if run.record.get("finished")]
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
    pictures = {
        "means": draw(figures.means, table),
        "forest": draw(figures.forest, table),
        "curve": draw(figures.curve, table),
        "tasks": draw(figures.tasks, table) if len(table["tasks"]) > 1 else None,
        "loss": draw(figures.loss, cells, names) if len(cells) <= CROWDED else None,
        "sources": draw(mix_figures.sources, cells),
    }
    text = templates.get_template("report.html.jinja").render(
        table=table,
        rouge=ROUGE,
        limit=LIMIT,
        nothing=NOTHING_TO_COMPARE,
        answers=answers(table),
        published_answer=published_answer(table),
        published=PUBLISHED,
        cautions=cautions(table),
        controls=control_sentences(table),
        pictures=pictures,
        about=f"{some(names, 4)} on {some(mixes, 4)}{' · ' + max(dates) if dates else ''}",
        cards=[(name, address(card, folder)) for name, card in (cards or {}).items()],
        records=[(f"{address(run.folder, folder)}/", run.record) for run in runs],
        versions=[f"{name} {' / '.join(sorted(found))}" for name, found in versions.items()],
        averaged={task: table["tasks"][task] for task in averaged(table["tasks"])},
        models=names,
        signal=[
            (*key, {entry["metric"]: entry for entry in own})
            for key, own in groupby(table["signal"], itemgetter("model", "task"))
        ],
    )
    text = text.replace("ROUGE-", "ROUGE\N{NON-BREAKING HYPHEN}")
    return text.replace("p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
