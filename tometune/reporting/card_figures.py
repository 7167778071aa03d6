"""The pictures of a data card: what a mix is made of, how long its rows are, what was left out on the way to it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from tometune.data.profile import Profile
from tometune.reporting.svg import GRID, HUES, INK, MUTED, as_svg, panels, styled

NAMED = 12
"""Sources drawn by name; the rest are one."""

LETTERS = 30
"""Letters of a source's name in a picture."""

BINS = 44

MOST_TURNS = 12
"""Conversations of more turns are drawn together."""

BASE, POOL = HUES[0], HUES[1]


@dataclass(frozen=True)
class Group:
    """Rows that are drawn together."""

    label: str
    rows: np.ndarray
    """Mask over the mix; bool."""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the page's style; a name in letters that matplotlib's own font lacks is set by the browser's."""
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def groups(mix: Profile) -> list[Group]:
    """Return the sources with most rows, and the others as one."""
    found = [Group(label(name), rows) for name, rows in mix.by_source()]
    if len(found) <= NAMED + 1:
        return found
    rest = np.logical_or.reduce([group.rows for group in found[NAMED:]])
    return [*found[:NAMED], Group(f"{len(found) - NAMED} others", rest)]


def label(name: str) -> str:
    """Return a name as a picture shows it: one line, not too long, nothing in it read as a formula."""
    line = " ".join(name.split())
    half = LETTERS // 2
    short = line if len(line) <= LETTERS else f"{line[: half - 1]}…{line[-half:]}"  # long names differ at their ends
    return short.replace("$", r"\$")


def composition(mix: Profile) -> str:
    """Draw the rows by source, those of the base and those of the pool."""
    shown = groups(mix)
    figure, ((axis,),) = panels(1, 1, 9.6, 0.9 + 0.3 * len(shown))
    for place, group in enumerate(shown):
        pool = int(mix.pool[group.rows].sum())
        base = int(group.rows.sum()) - pool
        axis.barh(place, base, height=0.66, color=BASE)
        axis.barh(place, pool, left=base, height=0.66, color=POOL)
        _told(axis, base + pool, place, f"{base + pool:,} ({(base + pool) / len(mix):.1%})")
    _bars(axis, [group.label for group in shown])
    if mix.pool.any():
        handles = [Patch(facecolor=BASE, label="from the base"), Patch(facecolor=POOL, label="from the pool")]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1, handleheight=1)
    told = ", ".join(f"{group.label} {int(group.rows.sum()):,}" for group in shown)
    return as_svg(figure, "composition", f"Rows by source: {told}.")


def _told(axis: Axes, end: float, place: int, text: str) -> None:
    """Write a bar's number behind it."""
    axis.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", color=INK)


def _bars(axis: Axes, names: Sequence[str], margin: float = 0.16) -> None:
    """Set up an axis of horizontal bars that say their numbers themselves."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.margins(x=margin)
    axis.spines["bottom"].set_visible(False)


def shapes(mix: Profile, max_length: int | None = None) -> str:
    """Draw the histograms of characters, tokens and turns, a line a source, each as high as its own fullest bin.

    Args:
        mix: its values.
        max_length: tokens at which rows were cut.
    """
    shown = groups(mix)
    columns: list[tuple[str, np.ndarray]] = [("characters", mix.characters)]
    trained = mix.tokens is not None and (mix.tokens > 0).any()
    columns += [("tokens", mix.tokens)] if mix.tokens is not None and trained else []
    columns += [("turns", mix.turns)]
    figure, (axes,) = panels(1, len(columns), 9.6, 0.95 + 0.43 * len(shown), sharey=True)
    for axis, (name, values) in zip(axes, columns, strict=True):
        axis.set_title(name)
        draw = _turns if name == "turns" else _lengths
        draw(axis, [(group.rows & (values > 0), values) for group in shown])
    if trained and mix.tokens is not None and max_length is not None and (mix.tokens >= max_length).any():
        axes[1].axvline(max_length, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    axes[0].set_yticks(range(len(shown)), [group.label for group in shown])
    axes[0].set_ylim(len(shown) - 0.7, -1.02)
    told = "; ".join(f"{g.label}: median {np.median(mix.characters[g.rows]):,.0f} characters" for g in shown)
    return as_svg(figure, "shapes", f"Histograms of length and turns by source. {told}.")


def _lengths(axis: Axes, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw lengths on a logarithmic axis, with the median of each line."""
    everything = np.concatenate([values[rows] for rows, values in parts])
    low, high = max(np.percentile(everything, 0.1), 1), max(np.percentile(everything, 99.95), 2)
    edges = np.geomspace(low * 0.9, high * 1.1, BINS + 1)
    for place, (rows, values) in enumerate(parts):
        chosen = np.clip(values[rows], edges[0], edges[-1])
        counts, _ = np.histogram(chosen, edges)
        _line(axis, place, edges, counts)
        median = float(np.median(chosen)) if len(chosen) else edges[0]
        axis.plot([median, median], [place, place - 0.16], color=INK, linewidth=1.3)
    axis.set_xlim(edges[0], edges[-1])
    _logarithmic(axis)
    axis.grid(visible=True, axis="x")
    axis.grid(visible=False, axis="y")
    axis.spines["bottom"].set_visible(False)


def _logarithmic(axis: Axes) -> None:
    """Make the x axis logarithmic, with ticks that leave each other room."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1, 3), numticks=12))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1000 else f"{value / 1000:g}k")


def _turns(axis: Axes, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw counts of turns."""
    edges = np.arange(0.5, MOST_TURNS + 1.5)
    for place, (rows, values) in enumerate(parts):
        counts, _ = np.histogram(np.clip(values[rows], 1, MOST_TURNS), edges)
        _line(axis, place, edges, counts)
    _counted(axis)
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)


def _counted(axis: Axes) -> None:
    """Mark numbers of turns along x."""
    ticks = range(2, MOST_TURNS + 1, 2)
    axis.set_xlim(0.5, MOST_TURNS + 0.5)
    axis.set_xticks(ticks, [f"{tick}+" if tick == MOST_TURNS else str(tick) for tick in ticks])


def _line(axis: Axes, place: int, edges: np.ndarray, counts: np.ndarray) -> None:
    """Draw one histogram, standing on its line."""
    heights = 0.84 * counts / max(counts.max(), 1)
    axis.stairs(place - heights, edges, baseline=place, fill=True, color=HUES[0], alpha=0.85)
    axis.plot([edges[0], edges[-1]], [place, place], color=GRID, linewidth=0.7)


def steps(rows: Sequence[tuple[str, int, bool]], name: str) -> str | None:
    """Draw the way from the rows read to those taken: what was left at each step, and what was taken off.

    Args:
        rows: name, number, and whether it was taken off.
        name: of where they are from, `base` or `pool`.
    """
    if len(rows) < 3:
        return None
    figure, ((axis,),) = panels(1, 1, 9.6, 0.5 + 0.3 * len(rows))
    left = rows[0][1]
    for place, (_, number, off) in enumerate(rows):
        start = left - number if off else 0
        left = left - number if off else number
        axis.barh(place, number, left=max(start, 0), height=0.66, color=POOL if off else BASE)
        _told(axis, max(start, 0) + number, place, f"{'− ' if off else ''}{number:,}")
    _bars(axis, [label(text) for text, _, _ in rows])
    told = "; ".join(f"{text}: {number:,}" for text, number, _ in rows)
    return as_svg(figure, f"steps-{name}", f"From the rows of the {name} read to those taken. {told}.")
