"""HTML that the report and the data card share: templates, figures as SVG, and the links from a card to reports."""

import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from glob import escape as escape_glob
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tometune.common.files import write_text

log = logging.getLogger(__name__)

# Placeholder colours. `as_svg` replaces each by a CSS variable, for which page.css has a light and a dark value.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
ACCENTS = tuple(f"#05050{number}" for number in range(1, 7))  # one per model
HUES = tuple(f"#06060{number}" for number in range(1, 9))  # one per source of a mix; the last is for all others
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--paper"},
    **{colour: f"--accent-{number}" for number, colour in enumerate(ACCENTS, 1)},
    **{colour: f"--hue-{number}" for number, colour in enumerate(HUES, 1)},
}
WIDTH = 9.6  # inches of a figure as wide as the page
NARROW = 4.4  # inches of the widest panel
COLUMNS = 3  # panels per line

FOLDER = Path(__file__).parent  # of the templates and styles
CARDS = "mixes"
"""Folder of the data cards below `paths.outputs`: many browsers may not read a hidden cache folder."""


def environment() -> Environment:
    """Return the environment for the templates in this folder."""
    loader = FileSystemLoader(FOLDER)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def address(path: Path, folder: Path) -> str:
    """Return the address of a file for links from a page in `folder`."""
    return quote(os.path.relpath(path.absolute(), folder.absolute()).replace(os.sep, "/"))


def markdown_line(texts: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def draw(figure: Callable[..., str | None], *arguments: Any) -> Markup | None:
    """Call a function that draws a figure; if that fails, log one warning and leave the figure out."""
    try:
        with rc_context(fname=FOLDER / "page.mplstyle"), warnings.catch_warnings():
            # The browser chooses the font, so glyphs that matplotlib's own font lacks do not matter.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            svg = figure(*arguments)
    except Exception as error:
        log.warning("figure %s left out: %s: %s", figure.__name__, type(error).__name__, error)
        return None
    return None if svg is None else Markup(svg)  # noqa: S704 - our own SVG, with escaped texts


def panels(titles: Sequence[str], height: float, columns: int = COLUMNS) -> list[Axes]:
    """Return the axes of figures of their own, each as wide as one of `columns` on the page; height in inches."""
    size = min(NARROW, WIDTH / min(columns, len(titles))), height
    axes = [Figure(figsize=size, layout="constrained").subplots() for _ in titles]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return axes


def as_grid(
    axes: Sequence[Axes], name: str, description: str, legend: Sequence[tuple[str, str]] = (), columns: int = COLUMNS
) -> str:
    """Return panels as HTML, next to each other or, in a narrow window, below each other.

    `name` must be unique on the page, `description` is read by screen readers. `legend` has a colour and
    a text for each entry.
    """
    svgs = "".join(as_svg(axis, f"{name}{number}") for number, axis in enumerate(axes))
    label = f'role="img" aria-label="{escape(description)}" style="--columns: {min(columns, len(axes))}"'
    return f'<div class="panels" {label}>{svgs}</div>{as_legend(legend)}'


def as_legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend of colours and texts as HTML."""
    lines = (f'<li><i style="background: var({VARIABLES[hue]})"></i>{escape(text)}</li>' for hue, text in entries)
    return f'<ul class="legend">{"".join(lines)}</ul>' if entries else ""


def as_svg(axis: Axes, name: str) -> str:
    """Return the figure of these axes as an `<svg>` element with text as text and colours as CSS variables.

    `name` is the prefix of the ids in the SVG.
    """

    def font(found: re.Match[str]) -> str:  # matplotlib before 3.11 writes the font as one property
        weight = "font-weight: 650; " if "bold" in found[1] or "700" in found[1] else ""
        return f"{weight}font-size: {found[2]}px"

    out, figure = io.StringIO(), axis.figure
    assert isinstance(figure, Figure)
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|\sxmlns(:xlink)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|href)="(#?)', rf'\1="\g<2>{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r' font-family: [^;"]*;', "", svg).replace("font-weight: 700", "font-weight: 650")  # as on the page
    svg = re.sub(r'font: ((?:\w+ )*)([\d.]+)px [^;"]*', font, svg)
    svg = re.sub(r"#0[1-6]0[1-6]0[1-8]", lambda found: f"var({VARIABLES[found[0]]})", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg style="--inches: {figure.get_figwidth():g}"', 1).strip()


def find_cards(outputs: Path, records: Iterable[Mapping[str, Any]]) -> dict[str, Path]:
    """Return the data cards of the mixes of these runs by name, as far as `prepare` has written them."""
    digests = dict.fromkeys(str(record["data"].get("digest"))[:8] for record in records)
    pages = [page for digest in digests for page in (outputs / CARDS).glob(f"*-{escape_glob(digest)}/mix.html")]
    return {page.parent.name.rpartition("-")[0]: page for page in sorted(pages)}


def link_runs(page: Path, runs: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Link a data card to the runs (folder, run.json) on its mix and to the reports of their sweeps."""

    def link(path: Path, text: str) -> str:
        return f'<a href="{address(path, page.parent)}">{escape(text)}</a>'

    links: dict[Path, str] = {}
    for folder, record in runs:
        if page.parent.name.endswith(f"-{str((record.get('data') or {}).get('digest'))[:8]}"):
            report = folder.parent / "report.html"
            sweep = link(report, f"report {folder.parent.name}") if report.exists() else "runs"
            links[report] = f"{links[report]}, " if report in links else f"{sweep}: "
            links[report] += link(folder, folder.name)
    if links:
        marks = re.compile(r"(?<=<!-- runs -->).*?(?=<!-- end of runs -->)", re.DOTALL)
        text = page.read_text(encoding="utf-8")
        write_text(page, marks.sub(lambda _: f"used by {'; '.join(links.values())}", text, count=1))
