"""Figures of controls: the effect of each source as a forest plot, and scores over sizes or another number."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tometune.evaluation.metrics import label
from tometune.reporting import mix_figures
from tometune.reporting.conclusions import models, significant, tuned_rows
from tometune.reporting.controls import effects
from tometune.reporting.html import ACCENTS, MUTED, PAPER, WIDTH, as_svg, panels

Row = Mapping[str, Any]
Table = Mapping[str, Any]

FEWEST = 4  # values of a number from which on scores are drawn over it
STEPS = [1, 2, 2.5, 5, 10]  # tick distances, times a power of ten


def forest(table: Table) -> str | None:
    """Draw the effect of each source with its interval, one panel per metric; None without arms over sources."""
    found, metrics = effects(table), table["metrics"]
    if not found:
        return None
    names = sorted(found, key=lambda name: found[name][metrics[-1]]["delta"])
    figure, (axes,) = panels(1, len(metrics), WIDTH, 1.1 + 0.36 * len(names), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        axis.set_title(label(metric))
        axis.axvline(0, color=MUTED, linewidth=1.1, linestyle=(0, (3, 3)))
        for place, name in enumerate(names):
            entry = found[name][metric]
            tested = entry["interval_over"] != "examples"
            axis.plot(
                [entry["ci_low"], entry["ci_high"]],
                [place, place],
                color=ACCENTS[0],
                linewidth=2 if tested else 1.2,
                alpha=0.45 if tested else 1,
                linestyle="-" if tested else (0, (1, 2)),
            )
            fill = ACCENTS[0] if significant(entry, table) else PAPER
            axis.plot([entry["delta"]], [place], "o", markersize=7, color=fill, markeredgecolor=ACCENTS[0])
        axis.grid(visible=True, axis="x")
        axis.grid(visible=False, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        )
    axes[0].set_yticks(range(len(names)), list(map(mix_figures.label, names)))
    axes[0].set_ylim(-0.6, len(names) - 0.4)
    described = "; ".join(f"{name} {found[name][metrics[-1]]['delta']:+.3f}" for name in reversed(names))
    return as_svg(figure, "forest", f"Effect of each source with its interval. {label(metrics[-1])}: {described}.")


def curve(table: Table) -> str | None:
    """Draw scores over the rows, or over a setting, with intervals; None if no number has `FEWEST` values."""
    rows = tuned_rows(table)
    key = _axis(rows)
    if key is None:
        return None
    series: dict[str, list[Row]] = {}
    for row in rows:
        others = {name: value for name, value in row["settings"].items() if name != key}
        texts = [row["model"] if len(models(table)) > 1 else "", row["data"] if key != "rows" else ""]
        texts += [f"{name.rpartition('.')[2]}={value}" for name, value in others.items()]
        series.setdefault(" ".join(filter(None, texts)), []).append(row)
    metrics = table["metrics"]
    figure, (axes,) = panels(1, len(metrics), WIDTH, 3.4)
    for axis, metric in zip(axes, metrics, strict=True):
        axis.set_title(label(metric))
        for number, (colour, points) in enumerate(zip(ACCENTS, series.values(), strict=False)):
            points = sorted(points, key=lambda row: _value(row, key))
            places = [_value(row, key) * 1.08**number for row in points]  # side by side, so that intervals stay visible
            means = [row[metric]["mean"] for row in points]
            axis.plot(places, means, "o-", color=colour, markersize=6, markeredgecolor=PAPER)
            ends = [[row[metric][end] for row in points] for end in ("ci_low", "ci_high")]
            axis.vlines(places, *ends, color=colour, linewidth=2, alpha=0.45)
        _numbers(axis, sorted({_value(row, key) for row in rows}))
        axis.set_xlabel(key)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    if len(series) > 1:
        marks = [Line2D([], [], color=c, label=name, marker="o") for c, name in zip(ACCENTS, series, strict=False)]
        figure.legend(handles=marks, loc="outside upper left", ncols=4)
    return as_svg(figure, "curve", f"Mean scores over {key} with intervals.")


def _axis(rows: Sequence[Row]) -> str | None:
    """Return `rows` or the setting that has the most different numbers, if they are at least `FEWEST`."""
    found = {}
    for key in ["rows", *dict.fromkeys(name for row in rows for name in row["settings"])]:
        values = [_value(row, key) for row in rows]
        if all(isinstance(value, int | float) and value > 0 for value in values):
            found[key] = len(set(values))
    best = max(found, key=found.__getitem__, default=None)
    return best if best is not None and found[best] >= FEWEST else None


def _value(row: Row, key: str) -> Any:
    return row["rows"] if key == "rows" else row["settings"].get(key)


def _numbers(axis: Axes, values: Sequence[float]) -> None:
    """Put a tick at each value, on a logarithmic axis."""
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value / 1000:g}k" if value >= 1000 else f"{value:g}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())
