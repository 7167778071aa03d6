"""HTML that the report and the data card share: templates, the style of figures, and figures as SVG."""

import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

FOLDER = Path(__file__).parent  # of the templates and styles


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


def panels(count: int, columns: int, height: float) -> list[Axes]:
    """Return the axes of figures of their own, each as wide as one of `columns` on the page; height in inches."""
    size = min(NARROW, WIDTH / columns), height
    return [Figure(figsize=size, layout="constrained").subplots() for _ in range(count)]


def as_grid(axes: Sequence[Axes], columns: int, name: str, description: str, legend: Mapping[str, str]) -> str:
    """Return panels as HTML, next to each other or, in a narrow window, below each other.

    `name` must be unique on the page, `description` is read by screen readers. `legend` has texts by colour.
    """
    svgs = "".join(as_svg(axis, f"{name}{number}") for number, axis in enumerate(axes))
    label = f'role="img" aria-label="{escape(description)}" style="--columns: {columns}"'
    return f'<div class="panels" {label}>{svgs}</div>{as_legend(legend)}'


def as_legend(texts: Mapping[str, str]) -> str:
    """Return a legend as HTML, with texts by colour."""
    lines = (f'<li><i style="background: var({VARIABLES[hue]})"></i>{escape(text)}</li>' for hue, text in texts.items())
    return f'<ul class="legend">{"".join(lines)}</ul>' if texts else ""


def as_svg(axis: Axes, name: str) -> str:
    """Return the figure of these axes as an `<svg>` element with text as text and colours as CSS variables.

    `name` must be unique on the page, because it is the prefix of the ids in the SVG.
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
