"""Figures of scores: cells with their intervals and seeds, by task, and next to the published results."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tometune.evaluation.metrics import label
from tometune.reporting.published import PUBLISHED
from tometune.reporting.scores import ROUGE
from tometune.reporting.svg import ACCENTS, GRID, INK, MUTED, PAPER, WIDTH, as_svg, panels
from tometune.reporting.text import data_label

Row = Mapping[str, Any]

COLUMNS = 3
"""Panels per line."""

ACROSS = 4
"""Up to this many tasks are drawn as columns, more as rows."""

CROWDED = 4
"""With more cells, the figure of the published results labels mixes by their rows."""

STEPS = [1, 2, 2.5, 5, 10]
"""Tick distances, times a power of ten."""

FAR = 1.6
"""A base model's score is drawn as a line if the axis grows by at most this factor, else written at the edge."""


def models(table: Mapping[str, Any]) -> list[str]:
    """Return the models in the order of the table; the index of each is that of its accent colour."""
    return list(dict.fromkeys(row["model"] for row in table["rows"]))


def means(table: Mapping[str, Any]) -> str:
    """Draw the mean and interval of each cell, with each seed as a dot; one panel per metric."""
    metrics = table["metrics"]
    lines = -(-len(metrics) // COLUMNS)
    height = 3.5 + 0.25 * (len(_labels(table["rows"])) > 4)
    figure, axes = panels(lines, COLUMNS, WIDTH, height * lines)
    flat = [axis for row in axes for axis in row]
    for axis, metric in zip(flat, metrics, strict=False):
        axis.set_title(label(metric))
        _draw_cells(axis, table, metric)
    for axis in flat[len(metrics) :]:
        axis.set_visible(False)
    _legend(figure, table)
    values = "; ".join(
        f"{row['cell']}: " + ", ".join(f"{label(metric)} {row[metric]['mean']:.3f}" for metric in metrics)
        for row in table["rows"]
    )
    level = f"{table['interval']['confidence']:.0%}"
    return as_svg(figure, "means", f"Mean scores with {level} intervals, and each seed as a dot. {values}.")


def tasks(table: Mapping[str, Any]) -> str:
    """Draw the same by task: one column per task and one row per metric, or the reverse with many tasks."""
    names, metrics = list(table["tasks"]), table["metrics"]
    by_row = len(names) > ACROSS
    if by_row:
        figure, axes = panels(len(names), len(metrics), WIDTH, 0.6 + 1.7 * len(names), sharex=True)
        heads, sides = [label(metric) for metric in metrics], [_wrapped(name, 20) for name in names]
    else:
        figure, axes = panels(len(metrics), len(names), WIDTH, 2.15 * len(metrics), sharex=True)
        heads, sides = [_wrapped(name, 84 // len(names)) for name in names], [label(metric) for metric in metrics]
    for axis, text in zip(axes[0], heads, strict=True):
        axis.set_title(text)
    for row, text in zip(axes, sides, strict=True):
        row[0].set_ylabel(text)
    by_metric = [list(column) for column in zip(*axes, strict=True)] if by_row else axes
    for row, metric in zip(by_metric, metrics, strict=True):
        for axis, task in zip(row, names, strict=True):
            _draw_cells(axis, table, metric, task)
    _legend(figure, table)
    return as_svg(figure, "tasks", f"Means with intervals by task ({', '.join(names)}) and metric.")


def published(table: Mapping[str, Any]) -> str:
    """Draw the published means and deviations (hollow, grey) next to those of this sweep (filled)."""
    figure, axes = panels(1, len(ROUGE), WIDTH, 3.3)
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names = models(table)
    short = dict(zip(_labels(tuned), short_labels(tuned, small=len(tuned) > CROWDED), strict=True))
    first = len(PUBLISHED) + 1
    for number, (axis, metric) in enumerate(zip(axes[0], ROUGE, strict=True)):
        axis.set_title(label(metric), pad=24)
        for place, entry in enumerate(PUBLISHED):
            ends = [entry.mean[number] - entry.std[number], entry.mean[number] + entry.std[number]]
            axis.plot([place, place], ends, color=MUTED, linewidth=1.4)
            axis.plot([place], [entry.mean[number]], "D", markersize=6, color=PAPER, markeredgecolor=MUTED)
        for place, row in enumerate(tuned, first):
            colour = ACCENTS[names.index(row["model"]) % len(ACCENTS)]
            mean, deviation = row[metric]["mean"], row[metric]["std"] or 0.0
            axis.plot([place, place], [mean - deviation, mean + deviation], color=colour, linewidth=2, alpha=0.45)
            axis.plot([place], [mean], "o", color=colour, markersize=7, markeredgecolor=PAPER)
        axis.axvline(len(PUBLISHED), color=GRID, linewidth=0.8)
        texts = [*(entry.data.split(":")[0] for entry in PUBLISHED), *(short[data_label(row)] for row in tuned)]
        places = [*range(len(PUBLISHED)), *range(first, first + len(tuned))]
        axis.set_xticks(places, texts, rotation=35, ha="right", rotation_mode="anchor")
        axis.text(1, 1.02, "published", transform=axis.get_xaxis_transform(), ha="center", color=MUTED)
        middle = first + (len(tuned) - 1) / 2
        axis.text(middle, 1.02, "this sweep", transform=axis.get_xaxis_transform(), ha="center", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    _legend(figure, table)
    description = "Mean and standard deviation over three runs of the published table, next to those of this sweep."
    return as_svg(figure, "published", description)


def _wrapped(task: str, width: int) -> str:
    """Return a task's name in words, in lines of at most that many letters."""
    return fill(task.replace("_", " "), width, break_long_words=True)


def _legend(figure: Figure, table: Mapping[str, Any]) -> None:
    """Name the models if there are several."""
    names = models(table)
    marks = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=ACCENTS[number % len(ACCENTS)], label=name)
        for number, name in enumerate(names)
    ]
    if len(names) > 1:
        figure.legend(handles=marks, loc="outside upper left", ncols=len(names), handletextpad=0.2)


def _draw_cells(axis: Axes, table: Mapping[str, Any], metric: str, task: str | None = None) -> None:
    """Draw one panel: cells along x, the score along y; over tasks, or for one task."""

    def values(row: Row) -> Row:
        found: Row = row[metric] if task is None else row["tasks"][task][metric]
        return found

    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names, labels = models(table), _labels(tuned)
    shown = [values(row)[end] for row in tuned for end in ("ci_low", "ci_high", "mean")]
    for row in tuned:
        number = names.index(row["model"])
        place = labels.index(data_label(row)) + 0.28 * (number - (len(names) - 1) / 2)
        dots = [run[metric] if task is None else run["tasks"][task][metric] for run in row["runs"]]
        shown += dots
        _mark(axis, place, values(row), dots, ACCENTS[number % len(ACCENTS)])
    margin = 0.08 * (max(shown) - min(shown)) or 0.01
    bases = [(names.index(row["model"]), values(row)["mean"]) for row in table["rows"] if row["stage"] == "base"]
    axis.set_ylim(*_draw_bases(axis, bases, min(shown) - margin, max(shown) + margin))
    axis.set_xlim(-0.6, len(labels) - 0.4)
    texts = short_labels(tuned, small=task is not None)
    crowded = len(texts) * (max(map(len, texts)) + 1) > (34 if task is None else 24)
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_xticks(range(len(labels)), texts, **slant)
    axis.yaxis.set_major_locator(MaxNLocator(5 if task is None else 4, steps=STEPS))


def _mark(axis: Axes, place: float, values: Row, dots: Sequence[float], colour: str) -> None:
    """Draw an interval, its mean, and the single seeds next to it."""
    ends = [values["ci_low"], values["ci_high"]]
    if len(dots) == 1:  # an interval over examples only must not look as good as the others
        axis.plot([place, place], ends, color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
        axis.plot([place], [values["mean"]], "o", color=PAPER, markersize=6, markeredgecolor=colour)
        return
    axis.plot([place, place], ends, color=colour, linewidth=2, alpha=0.45)
    axis.plot([place], [values["mean"]], "o", color=colour, markersize=7, markeredgecolor=PAPER, markeredgewidth=1.2)
    axis.plot([place + 0.16] * len(dots), dots, "o", color=colour, markersize=3.4, alpha=0.75, markeredgewidth=0)


def _draw_bases(axis: Axes, bases: Sequence[tuple[int, float]], low: float, high: float) -> tuple[float, float]:
    """Draw the base models as lines if they are close, else note them at the edge; returns the limits of the y axis.

    Args:
        axis: the panel.
        bases: index of each model and its score.
        low: lower limit that the cells need.
        high: upper limit that the cells need.
    """
    for number, value in bases:
        colour = ACCENTS[number % len(ACCENTS)] if len(bases) > 1 else MUTED
        reach = max(high, value) - min(low, value)
        if reach <= FAR * (high - low):
            low, high = min(low, value - 0.06 * reach), max(high, value + 0.06 * reach)
            axis.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (3, 3)))
            continue
        under, space = value < low, 0.11 * (high - low)
        low, high = (low - space, high) if under else (low, high + space)
        height, side = (low + space / 4, "bottom") if under else (high - space / 4, "top")
        axis.text(-0.55, height, f"base {value:.3f} {'↓' if under else '↑'}", color=colour, fontsize=8.5, va=side)
    return low, high


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the places along x."""
    return list(dict.fromkeys(data_label(row) for row in rows if row["stage"] == "tuned"))


def short_labels(rows: Sequence[Row], small: bool = False) -> list[str]:
    """Return the shortest labels along x that distinguish the cells.

    Parts that all cells share are left out, and keys are reduced to their last part: `lora.r=8` becomes `r=8`.

    Args:
        rows: of tuned cells.
        small: whether space is so short that a mix is labelled by its rows, `100k`.
    """
    alone = len({row["data"] for row in rows}) == 1 and any(row["settings"] for row in rows)

    def short(row: Row, data: str) -> str:
        settings = [f"{key.rpartition('.')[2]}={value}" for key, value in row["settings"].items()]
        return " ".join([*([] if alone else [data]), *settings])

    places = {data_label(row): row for row in rows}
    names = [short(row, row["data"]) for row in places.values()]
    sizes = [short(row, f"{row['rows'] / 1000:g}k") for row in places.values()]
    shown = sizes if small and len(set(sizes)) == len(sizes) else names
    return shown if len(set(shown)) == len(shown) else list(places)
