"""Figures of mixes: rows by source in several mixes, and the sources and lengths of a single one."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from tometune.reporting.grouping import Cell
from tometune.reporting.html import HUES, INK, MUTED, VARIABLES, as_grid, as_legend, panels

MOST_PARTS = len(HUES) - 1  # parts of a bar with a colour of their own; the rest share one
MOST_SOURCES = 12  # sources of a mix that are drawn separately; the rest are drawn as one
MOST_TURNS = 12  # conversations with more turns share the last bin
NAME_LENGTH = 30
BINS = 44


def sources(cells: Sequence[Cell]) -> str | None:
    """Draw the rows of each mix by source; None if no mix was recorded.

    For mixes redrawn per seed, the first seed is shown.
    """
    mixes: dict[tuple[str, int], dict[str, int]] = {}
    for cell in cells:
        path = next(iter(cell.runs.values())).folder / "mix.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("sources", {}) if path.exists() else {}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if found:
            mixes.setdefault((cell.data, cell.rows), found)
    sizes = Counter(name for name, _ in mixes)
    bars = {name if sizes[name] < 2 else f"{name} {rows:,}": mix for (name, rows), mix in mixes.items()}
    return stacked_bars("Rows of each mix by source", bars) if bars else None


def stacked_bars(title: str, bars: Mapping[str, Mapping[str, int]]) -> str:
    """Return one horizontal bar per entry of `bars`, divided into parts, as HTML that fits any width."""
    total = sum(map(Counter, bars.values()), Counter())
    largest = dict(total.most_common(MOST_PARTS))
    named = [part for part in total if part in largest]
    rest = len(total) - len(named)
    colours = (*HUES[: len(named)], HUES[-1])
    longest = max(sum(parts.values()) for parts in bars.values())
    lines, described = [], []
    for bar, parts in bars.items():
        counts, end = [parts.get(part, 0) for part in named], sum(parts.values())
        widths = [f"{100 * count / longest:.3f}%" for count in (*counts, end - sum(counts))]
        parted = zip(widths, colours, strict=True)
        style = 'style="width: {}; background: var({})"'
        spans = "".join(f"<i {style.format(w, VARIABLES[hue])}></i>" for w, hue in parted if w != "0.000%")
        text = re.sub("([/_])", r"\1<wbr/>", escape(shortened(bar)))
        lines.append(f"<span>{text}</span><div>{spans}<b>{end:,}</b></div>")
        most = list(parts.items())[:MOST_PARTS]
        described.append(f"{bar}: {', '.join(f'{count:,} {part}' for part, count in most)}")
    texts = [*map(shortened, named), *([f"{rest} others"] if rest else [])]
    legend = as_legend([*zip(colours, texts, strict=False)])
    label = escape(f"{title}: {'; '.join(described)}.")
    return f'<div class="bars" role="img" aria-label="{label}">{"".join(lines)}</div>{legend}'


def groups(values: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the largest sources by name, and those of the others as one; `values` are of `profile`."""
    found = [(str(name), rows) for name, rows in values.groupby("source", observed=True)]
    rest = [rows for _, rows in found[MOST_SOURCES:]]
    return dict(found if len(rest) < 2 else [*found[:MOST_SOURCES], (f"{len(rest)} others", pd.concat(rest))])


def shortened(name: str) -> str:
    """Return a name as one line, shortened in the middle because long names differ at their ends."""
    line, half = " ".join(name.split()), NAME_LENGTH // 2
    return line if len(line) <= NAME_LENGTH else f"{line[: half - 1]}…{line[-half:]}"


def label(name: str) -> str:
    """Return a shortened name for matplotlib, where `$` would start a formula."""
    return shortened(name).replace("$", r"\$")


def composition(values: pd.DataFrame) -> str:
    """Draw the rows of one mix by source, divided into base and pool."""
    bars = {}
    for name, rows in groups(values).items():
        pool = int(rows["pool"].sum())
        bars[name] = {"from the base": len(rows) - pool, "from the pool": pool}
    return stacked_bars("Rows by source", bars)


def lengths(values: pd.DataFrame, max_length: int) -> str:
    """Draw histograms of characters, tokens and turns, one row per source, each scaled to its tallest bin.

    If rows reach `max_length`, where training truncates, it is marked.
    """
    shown = groups(values.assign(turns=values["turns"].clip(upper=MOST_TURNS)))
    columns = ["characters", *(["tokens"] if (values["tokens"] > 0).any() else []), "turns"]
    axes = panels(columns, 0.95 + 0.43 * len(shown))
    for axis, name in zip(axes, columns, strict=True):
        sizes = [rows[name].to_numpy() for rows in shown.values()]
        _histograms(axis, [size[size > 0] for size in sizes], logarithmic=name != "turns")
        if name == "tokens" and (values[name] >= max_length).any():
            axis.axvline(max_length, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        axis.set_yticks(range(len(shown)), list(map(label, shown)))
        axis.set_ylim(len(shown) - 0.7, -1.02)
    description = f"Histograms of {', '.join(columns)} by source: {', '.join(shown)}."
    return as_grid(axes, "lengths", description)


def _histograms(axis: Axes, rows: Sequence[np.ndarray], logarithmic: bool) -> None:
    """Draw one histogram per source, with its median where the axis is logarithmic."""
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)
    if logarithmic:
        everything = np.concatenate(rows)
        low, high = max(np.percentile(everything, 0.1), 1) * 0.9, max(np.percentile(everything, 99.95), 2) * 1.1
        edges = np.geomspace(low, high, BINS + 1)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1, 3), numticks=12))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1000 else f"{value / 1000:g}k")
        axis.grid(visible=True, axis="x")
    else:
        edges = np.arange(0.5, MOST_TURNS + 1.5)
        ticks = range(2, MOST_TURNS + 1, 2)
        axis.set_xticks(ticks, [f"{tick}+" if tick == MOST_TURNS else str(tick) for tick in ticks])
    axis.set_xlim(edges[0], edges[-1])
    for place, values in enumerate(rows):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        heights = 0.84 * counts / max(counts.max(), 1)
        axis.stairs(place - heights, edges, baseline=place, fill=True, color=HUES[0], alpha=0.85)
        if logarithmic and len(values):
            median = float(np.median(values))
            axis.plot([median, median], [place, place - 0.16], color=INK, linewidth=1.3)
