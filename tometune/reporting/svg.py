"""How the figures look, and how a matplotlib figure becomes SVG text that follows the page's colours."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
ACCENTS = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")
"""One a model. Stand-ins, as all colours here: the page has a light and a dark value for each."""

HUES = ("#060601", "#060602", "#060603", "#060604", "#060605", "#060606", "#060607", "#060608")
"""Of sources in a mix; the last is for the rest."""

VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--paper"},
    **{colour: f"--accent-{number}" for number, colour in enumerate(ACCENTS, 1)},
    **{colour: f"--hue-{number}" for number, colour in enumerate(HUES, 1)},
}
"""CSS variable of each stand-in."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tometune",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the page's style while the body runs."""
    with rc_context(STYLE):
        yield


def panels(rows: int, columns: int, width: float, height: float, **options: object) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `rows` × `columns` axes; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    return figure, [list(row) for row in axes]


def as_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an `<svg>` element: colours by CSS variables, text as text, ids of its own.

    Args:
        figure: what to draw; its text is set in the page's font.
        name: prefix of its ids, unique on the page.
        description: what it shows, for those who cannot see it.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|\sxmlns(:xlink)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|href)="(#?)', rf'\1="\g<2>{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r'font: ((?:\w+ )*)([\d.]+)px [^;"]*', _font, svg)
    svg = re.sub(r"#0[1-6]0[1-6]0[1-8]", lambda found: f"var({VARIABLES[found[0]]})", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _font(found: re.Match[str]) -> str:
    """Keep weight and size, and leave the family to the page."""
    weight = "font-weight: 650; " if "bold" in found[1] or "700" in found[1] else ""
    return f"{weight}font-size: {found[2]}px"
