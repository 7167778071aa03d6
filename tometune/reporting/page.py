"""report.html: one file without any reference outside of itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tometune.reporting import figures, training_figures
from tometune.reporting.cells import STREAMS, Grid
from tometune.reporting.conclusions import LABELS, LIMIT, answers, cautions, p_value, published_answer, signed
from tometune.reporting.published import PUBLISHED
from tometune.reporting.scores import METRICS
from tometune.reporting.svg import styled
from tometune.reporting.sweep import Sweep
from tometune.reporting.text import data_label, deviation_label, seeds_label

TEMPLATE = "page.html.jinja"
PICTURE = "picture.html.jinja"

CROWDED = 12
"""Curves of at most that many cells are drawn."""


def page(sweep: Sweep, grid: Grid, table: Mapping[str, Any]) -> str:
    """Return the page of a sweep.

    Args:
        sweep: its runs, for what is not a score.
        grid: its cells.
        table: the content of table.json.
    """
    templates = environment()
    templates.filters |= {
        "score": _score,
        "sd": deviation_label,
        "signed": signed,
        "p": _p,
        "seeds": seeds_label,
        "data": data_label,
    }
    text = templates.get_template(TEMPLATE).render(
        table=table,
        metrics=LABELS,
        limit=LIMIT,
        answers=answers(table),
        published_answer=published_answer(table["interval"]["confidence"]),
        published=PUBLISHED,
        cautions=cautions(table),
        pictures=pictures(grid, table),
        runs=[_facts(run.record) for cell in grid.cells for run in [*cell.runs.values(), *cell.apart]],
        versions=_versions(sweep),
        streams=STREAMS,
        models=figures.models(table),
        alpha=1 - table["interval"]["confidence"],
    )
    return text.replace("ROUGE-", "ROUGE\N{NON-BREAKING HYPHEN}").replace(
        "p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )


def picture_page(picture: str) -> str:
    """Return a page that shows one of the pictures and nothing else."""
    return environment().get_template(PICTURE).render(picture=picture)


def environment() -> Environment:
    """Return what reads the templates beside this file."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def pictures(grid: Grid, table: Mapping[str, Any]) -> dict[str, Markup | None]:
    """Draw every figure as an `<svg>` element, by name; None where the runs have nothing to show."""
    cells = [cell for cell in grid.cells if cell.runs]
    models = figures.models(table)
    with styled():
        drawn = {
            "means": figures.means(table),
            "tasks": figures.tasks(table) if len(table["tasks"]) > 1 else None,
            "published": figures.published(table),
            "loss": training_figures.loss(cells, models) if len(cells) <= CROWDED else None,
            "sources": training_figures.composition(cells),
            "throughput": training_figures.throughput(cells, models),
        }
    return {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}  # noqa: S704 - drawn by us


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table of runs says of one."""
    train = record.get("train") or {}
    return {
        "id": record["run_id"],
        "steps": train.get("steps"),
        "loss": train.get("final_loss"),
        "seconds": train.get("seconds"),
        "rate": train.get("tokens_per_second"),
        "memory": train.get("peak_memory_bytes"),
        "attempts": record.get("attempts"),
        "digest": record["data"].get("digest"),
        **{metric: record["eval"]["tuned"][metric] for metric in METRICS},
    }


def _versions(sweep: Sweep) -> list[str]:
    """Say which versions and commits the runs were made with, each once."""
    found: dict[str, set[str]] = {}
    for run in sweep.runs:
        for name, version in run.record.get("versions", {}).items():
            found.setdefault(name, set()).add(str(version))
        commit = (run.record.get("git") or {}).get("commit")
        if commit:
            found.setdefault("commit", set()).add(str(commit)[:10])
    return [f"{name} {' / '.join(sorted(versions))}" for name, versions in found.items()]


def _score(value: float | None) -> str:
    """Return a score with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def _p(value: float) -> str:
    """Return a p-value for a column of them."""
    return p_value(value).removeprefix("p ").removeprefix("= ")
