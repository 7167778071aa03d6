"""report.html: one file without any external reference."""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text
from tometune.evaluation.metrics import label
from tometune.reporting import figures, mix_figures
from tometune.reporting.analysis import Report
from tometune.reporting.conclusions import (
    LIMIT,
    NOTHING_TO_COMPARE,
    PUBLISHED,
    answers,
    cautions,
    p_value,
    published_answer,
    signed,
)
from tometune.reporting.scores import ROUGE
from tometune.reporting.svg import styled
from tometune.reporting.text import as_csv, as_markdown, data_label, deviation_label, sd_label, seeds_label

log = logging.getLogger(__name__)

CROWDED = 12  # loss curves are drawn for at most this many cells


def page(report: Report) -> str:
    """Return the page of a sweep."""
    table = report.table
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
        "sd_label": sd_label,
        "seeds": seeds_label,
        "signed": signed,
    }
    text = templates.get_template("report.html.jinja").render(
        table=table,
        metrics=table["metrics"],
        rouge=ROUGE,
        limit=LIMIT,
        nothing=NOTHING_TO_COMPARE,
        answers=answers(table),
        published_answer=published_answer(table["interval"]["confidence"]),
        published=PUBLISHED,
        cautions=cautions(table),
        pictures=pictures(report),
        records=[run.record for cell in report.grid.cells for run in [*cell.runs.values(), *cell.stream_runs]],
        versions=[f"{name} {' / '.join(sorted(found))}" for name, found in versions.items()],
        models=figures.models(table),
        alpha=1 - table["interval"]["confidence"],
    )
    return text.replace("ROUGE-", "ROUGE\N{NON-BREAKING HYPHEN}").replace(
        "p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )


def picture_page(picture: Markup) -> str:
    """Return a page that contains a single figure."""
    return environment().get_template("picture.html.jinja").render(picture=picture)


def environment() -> Environment:
    """Return the environment for the templates in this folder."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@lru_cache(maxsize=1)  # the page and `publish` show the same ones
def pictures(report: Report) -> Mapping[str, Markup | None]:
    """Draw every figure as an `<svg>` element, by name; None if the runs have nothing to draw."""
    table, cells = report.table, [cell for cell in report.grid.cells if cell.runs]
    models = figures.models(table)
    return {
        "means": draw(figures.means, table),
        "tasks": draw(figures.tasks, table) if len(table["tasks"]) > 1 else None,
        "published": draw(figures.published, table),
        "loss": draw(figures.loss, cells, models) if len(cells) <= CROWDED else None,
        "sources": draw(mix_figures.sources, cells),
        "throughput": draw(figures.throughput, cells, models),
    }


def draw(figure: Callable[..., str | None], *arguments: Any) -> Markup | None:
    """Call a function that draws a figure; if that fails, log one warning and leave the figure out.

    Raises:
        UserError: a file that the figure needs is broken.
    """
    try:
        with styled():
            svg = figure(*arguments)
    except UserError:
        raise
    except Exception as error:
        log.warning("figure %s left out: %s: %s", figure.__name__, type(error).__name__, error)
        return None
    return None if svg is None else Markup(svg)  # noqa: S704 - our own SVG, with escaped texts


def write(report: Report) -> Path:
    """Write table.json, table.csv, table.md and report.html into the sweep's folder; returns the page's path."""
    folder = report.sweep.folder
    write_json(folder / "table.json", report.table)
    write_text(folder / "table.csv", as_csv(report.table))
    write_text(folder / "table.md", as_markdown(report.table))
    write_text(folder / "report.html", page(report))
    return folder / "report.html"
