"""The report of a sweep folder, from reading the runs to writing its four files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tometune.common.files import write_json, write_text
from tometune.reporting.cells import Grid, group
from tometune.reporting.scores import load_scores
from tometune.reporting.sweep import Sweep, read_sweep
from tometune.reporting.table import analyse


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, for the cache of figures
class Report:
    """A sweep and its results."""

    sweep: Sweep
    grid: Grid
    table: dict[str, Any]  # the content of table.json


def build(folder: Path, resamples: int, confidence: float) -> Report:
    """Read a sweep folder and compare its cells, with `table.analyse`.

    Raises:
        UserError: the folder, a record or a file of scores is missing or broken, or runs cannot be paired.
    """
    sweep = read_sweep(folder)
    grid = group(sweep)
    return Report(sweep, grid, analyse(sweep, grid, load_scores(sweep.runs), resamples, confidence))


def write(report: Report) -> Path:
    """Write table.json, table.csv, table.md and report.html into the sweep's folder; returns the page's path."""
    from tometune.reporting.page import page
    from tometune.reporting.text import as_csv, as_markdown

    folder = report.sweep.folder
    write_json(folder / "table.json", report.table)
    write_text(folder / "table.csv", as_csv(report.table))
    write_text(folder / "table.md", as_markdown(report.table))
    write_text(folder / "report.html", page(report))
    return folder / "report.html"
