"""The pictures of scores: cells with their intervals and seeds, tasks, and the published figures beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tometune.reporting.drawing import ACCENTS, GRID, INK, MUTED, PAPER, as_svg, panels
from tometune.reporting.published import PUBLISHED
from tometune.reporting.scores import METRICS
from tometune.reporting.tables import data_label
from tometune.reporting.words import LABELS

Row = Mapping[str, Any]

FAR = 1.6
"""The untuned model's score is drawn if the axis grows by no more than this factor; else it is written at the edge."""

STEPS = [1, 2, 2.5, 5, 10]
"""Between two ticks, times a power of ten."""


def models(table: Mapping[str, Any]) -> list[str]:
    """Return the models, in the order of the table; the number of each is that of its accent."""
    return list(dict.fromkeys(row["model"] for row in table["rows"]))


def means(table: Mapping[str, Any]) -> str:
    """Draw each cell's mean and interval, with each seed as a dot; one panel a metric."""
    columns = len(_labels(table["rows"]))
    figure, axes = panels(1, len(METRICS), 9.6, 3.5 + 0.25 * (columns > 4))
    for axis, metric in zip(axes[0], METRICS, strict=True):
        axis.set_title(LABELS[metric])
        _cells(axis, table, metric)
    _legend(figure, table)
    return as_svg(figure, "means", _described(table))


def tasks(table: Mapping[str, Any]) -> str:
    """Draw the same for each task: a column a task, a row a metric."""
    names = list(table["tasks"])
    figure, axes = panels(len(METRICS), len(names), 9.6, 2.15 * len(METRICS), sharex=True)
    for row, metric in zip(axes, METRICS, strict=True):
        for axis, task in zip(row, names, strict=True):
            if metric == METRICS[0]:
                axis.set_title(f"{task.replace('_', ' ')}")
            if task == names[0]:
                axis.set_ylabel(LABELS[metric])
            _cells(axis, table, metric, task)
    _legend(figure, table)
    return as_svg(figure, "tasks", f"Means with intervals by task ({', '.join(names)}) and metric.")


def _legend(figure: Figure, table: Mapping[str, Any]) -> None:
    """Name the models where there are several."""
    names = models(table)
    marks = [
        Line2D([], [], marker="o", linestyle="", markersize=7, color=ACCENTS[number % len(ACCENTS)], label=name)
        for number, name in enumerate(names)
    ]
    if len(names) > 1:
        figure.legend(handles=marks, loc="outside upper left", ncols=len(names), handletextpad=0.2)


def _cells(axis: Axes, table: Mapping[str, Any], metric: str, task: str | None = None) -> None:
    """Draw one panel: cells along x, the score along y."""
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names = models(table)
    labels = _labels(tuned)
    low, high = _range([_values(row, metric, task) for row in tuned], [_dots(row, metric, task) for row in tuned])
    for row in tuned:
        number = names.index(row["model"])
        colour = ACCENTS[number % len(ACCENTS)]
        place = labels.index(data_label(row)) + 0.28 * (number - (len(names) - 1) / 2)
        _mark(axis, place, _values(row, metric, task), _dots(row, metric, task), colour)
    bases = [
        (names.index(row["model"]), _values(row, metric, task)["mean"]) for row in table["rows"] if not row["runs"]
    ]
    low, high = _before(axis, bases, low, high)
    axis.set_ylim(low, high)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    shown = _sizes(tuned) if task is not None else labels
    axis.set_xticks(range(len(labels)), shown)
    if _long(shown):
        axis.tick_params("x", rotation=25)
    axis.yaxis.set_major_locator(MaxNLocator(5 if task is None else 4, steps=STEPS))


def _mark(axis: Axes, place: float, values: Row, dots: Sequence[float], colour: str) -> None:
    """Draw an interval, its mean, and the seeds beside it."""
    ends = [values["ci_low"], values["ci_high"]]
    if len(dots) == 1:  # an interval over examples alone must not look as good as the others
        axis.plot([place, place], ends, color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
        axis.plot([place], [values["mean"]], "o", color=PAPER, markersize=6, markeredgecolor=colour)
        return
    axis.plot([place, place], ends, color=colour, linewidth=2, alpha=0.45)
    axis.plot([place], [values["mean"]], "o", color=colour, markersize=7, markeredgecolor=PAPER, markeredgewidth=1.2)
    axis.plot([place + 0.16] * len(dots), dots, "o", color=colour, markersize=3.4, alpha=0.75, markeredgewidth=0)


def _before(axis: Axes, bases: Sequence[tuple[int, float]], low: float, high: float) -> tuple[float, float]:
    """Draw the untuned models as lines where they are near, else say where they are; returns the axis' ends."""
    for number, value in bases:
        colour = ACCENTS[number % len(ACCENTS)] if len(bases) > 1 else MUTED
        reach = max(high, value) - min(low, value)
        if reach > FAR * (high - low):
            below, room = value < low, 0.11 * (high - low)
            low, high = (low - room, high) if below else (low, high + room)
            height, side = (low + room / 4, "bottom") if below else (high - room / 4, "top")
            text = f"before {value:.3f} {'↓' if below else '↑'}"
            axis.text(-0.55, height, text, color=colour, fontsize=8.5, va=side)
            continue
        margin = 0.06 * reach
        low, high = min(low, value - margin), max(high, value + margin)
        axis.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (3, 3)))
        axis.annotate(f"before {value:.3f}", (0.01, value), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=colour, fontsize=8.5)  # fmt: skip
    return low, high


def published(table: Mapping[str, Any]) -> str:
    """Draw the published means and deviations (hollow, grey) beside ours (filled), each in its own panel pair."""
    figure, axes = panels(1, len(METRICS), 9.6, 3.3)
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names = models(table)
    for number, (axis, metric) in enumerate(zip(axes[0], METRICS, strict=True)):
        axis.set_title(LABELS[metric], pad=24)
        for place, entry in enumerate(PUBLISHED):
            ends = [entry.mean[number] - entry.std[number], entry.mean[number] + entry.std[number]]
            axis.plot([place, place], ends, color=MUTED, linewidth=1.4)
            axis.plot([place], [entry.mean[number]], "D", markersize=6, color=PAPER, markeredgecolor=MUTED)
        for place, row in enumerate(tuned, len(PUBLISHED) + 1):
            colour = ACCENTS[names.index(row["model"]) % len(ACCENTS)]
            mean, deviation = row[metric]["mean"], row[metric]["std"] or 0.0
            axis.plot([place, place], [mean - deviation, mean + deviation], color=colour, linewidth=2, alpha=0.45)
            axis.plot([place], [mean], "o", color=colour, markersize=7, markeredgecolor=PAPER)
        axis.axvline(len(PUBLISHED), color=GRID, linewidth=0.8)
        labels = [*(entry.data.split(":")[0] for entry in PUBLISHED), *(data_label(row) for row in tuned)]
        places = [*range(len(PUBLISHED)), *range(len(PUBLISHED) + 1, len(PUBLISHED) + 1 + len(tuned))]
        axis.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")
        axis.text(1, 1.02, "published", transform=axis.get_xaxis_transform(), ha="center", color=MUTED)
        middle = len(PUBLISHED) + (len(tuned) + 1) / 2
        axis.text(middle, 1.02, "this sweep", transform=axis.get_xaxis_transform(), ha="center", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    description = "Mean and standard deviation over three runs of the published table, beside those of this sweep."
    return as_svg(figure, "published", description)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the places along x."""
    return list(dict.fromkeys(data_label(row) for row in rows if row["stage"] == "tuned"))


def _sizes(rows: Sequence[Row]) -> list[str]:
    """Return the shortest labels that tell the places along x apart: the rows of each mix, or the labels."""
    sizes = {data_label(row): f"{row['rows'] / 1000:g}k" for row in rows}
    return list(sizes.values()) if len(set(sizes.values())) == len(sizes) else list(sizes)


def _long(labels: Sequence[str]) -> bool:
    """Whether labels would run into each other."""
    return sum(map(len, labels)) > 34


def _values(row: Row, metric: str, task: str | None) -> Row:
    """Return mean and interval of a row."""
    found: Row = row[metric] if task is None else row["tasks"][task][metric]
    return found


def _dots(row: Row, metric: str, task: str | None) -> list[float]:
    """Return the score of each seed."""
    return [run[metric] if task is None else run["tasks"][task][metric] for run in row["runs"]]


def _range(values: Sequence[Row], dots: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the ends of an axis that holds all of these, with a margin."""
    shown = [value[end] for value in values for end in ("ci_low", "ci_high", "mean")]
    shown += [dot for seeds in dots for dot in seeds]
    margin = 0.08 * (max(shown) - min(shown)) or 0.01
    return min(shown) - margin, max(shown) + margin


def _described(table: Mapping[str, Any]) -> str:
    """Put the picture of means into words."""
    told = [
        f"{row['cell']}: " + ", ".join(f"{LABELS[metric]} {row[metric]['mean']:.3f}" for metric in METRICS)
        for row in table["rows"]
    ]
    return (
        f"Mean scores with {table['interval']['confidence']:.0%} intervals and each seed as a dot. {'; '.join(told)}."
    )
