"""Figures of scores: cells with their intervals and seeds, tasks, and the published results."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tometune.reporting.conclusions import LABELS
from tometune.reporting.published import PUBLISHED
from tometune.reporting.scores import METRICS
from tometune.reporting.svg import ACCENTS, GRID, INK, MUTED, PAPER, as_svg, panels
from tometune.reporting.text import data_label

FAR = 1.6
"""The untuned model's score is drawn if the axis grows by no more than this factor; else it is written at the edge."""


def before_lines(
    axis: Axes,
    bases: Sequence[tuple[int, float]],
    low: float,
    high: float,
    taken: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Draw the untuned models as lines where they are near, else say where they are; returns the axis' ends.

    Args:
        axis: the panel.
        bases: number of the model and its score.
        low: end of the axis as the cells need it.
        high: the other end.
        taken: intervals at both ends of the panel; a line's name stands where none is, above the line or below it.
    """
    lines = []
    for number, value in bases:
        colour = ACCENTS[number % len(ACCENTS)] if len(bases) > 1 else MUTED
        reach = max(high, value) - min(low, value)
        if reach > FAR * (high - low):
            under, room = value < low, 0.11 * (high - low)
            low, high = (low - room, high) if under else (low, high + room)
            height, side = (low + room / 4, "bottom") if under else (high - room / 4, "top")
            text = f"before {value:.3f} {'↓' if under else '↑'}"
            axis.text(-0.55, height, text, color=colour, fontsize=8.5, va=side)
            continue
        margin = 0.06 * reach
        low, high = min(low, value - margin), max(high, value + margin)
        lines.append((value, colour))
    for value, colour in lines:
        axis.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (3, 3)))
        right, below = spot(value, low, high, taken)
        axis.annotate(f"before {value:.3f}", (0.99 if right else 0.01, value), (0, -3 if below else 3),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=colour, fontsize=8.5,
            ha="right" if right else "left", va="top" if below else "bottom")  # fmt: skip
    return low, high


def spot(value: float, low: float, high: float, taken: Sequence[tuple[float, float]]) -> tuple[bool, bool]:
    """Return whether a line's name stands on the right, and whether below it: the first place without an interval."""
    height = 0.12 * (high - low)
    for below in (False, True):
        bottom, top = (value - height, value) if below else (value, value + height)
        for side, (start, end) in enumerate((taken[0], taken[-1])):
            if (end < bottom or start > top) and low <= bottom and top <= high:
                return bool(side), below
    return False, False


Row = Mapping[str, Any]

ACROSS = 4
"""Tasks beside each other; of more, each has a line of its own."""

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
    legend(figure, table)
    return as_svg(figure, "means", _described(table))


def tasks(table: Mapping[str, Any]) -> str:
    """Draw the same for each task: a column a task and a row a metric, or with many tasks the other way round."""
    names = list(table["tasks"])
    if len(names) > ACROSS:
        figure, axes = panels(len(names), len(METRICS), 9.6, 0.6 + 1.7 * len(names), sharex=True)
        axes = [list(column) for column in zip(*axes, strict=True)]
        heads, sides = [LABELS[metric] for metric in METRICS], [_wrapped(name, 20) for name in names]
    else:
        figure, axes = panels(len(METRICS), len(names), 9.6, 2.15 * len(METRICS), sharex=True)
        heads, sides = [_wrapped(name, 84 // len(names)) for name in names], [LABELS[metric] for metric in METRICS]
    for row, metric in zip(axes, METRICS, strict=True):
        for axis, task in zip(row, names, strict=True):
            _cells(axis, table, metric, task)
    across = list(zip(*axes, strict=True)) if len(names) > ACROSS else axes
    for axis, text in zip(across[0], heads, strict=True):
        axis.set_title(text)
    for line, text in zip(across, sides, strict=True):
        line[0].set_ylabel(text)
    legend(figure, table)
    return as_svg(figure, "tasks", f"Means with intervals by task ({', '.join(names)}) and metric.")


def _wrapped(task: str, width: int) -> str:
    """Return a task's name in words, in lines of at most that many letters."""
    return fill(task.replace("_", " "), width, break_long_words=True)


def legend(figure: Figure, table: Mapping[str, Any]) -> None:
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
    ends = [_values(row, metric, task) for row in tuned if data_label(row) in (labels[0], labels[-1])]
    low, high = before_lines(axis, bases, low, high, [(end["ci_low"], end["ci_high"]) for end in ends])
    axis.set_ylim(low, high)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    shown = short_labels(tuned, small=task is not None)
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if _long(shown, task) else {}
    axis.set_xticks(range(len(labels)), shown, **slant)
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


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the places along x."""
    return list(dict.fromkeys(data_label(row) for row in rows if row["stage"] == "tuned"))


def short_labels(rows: Sequence[Row], small: bool = False) -> list[str]:
    """Return the places along x in as few words as tell them apart.

    What all cells share is left out, and of a key only its last part is kept: `lora.r=8` is `r=8`.

    Args:
        rows: of tuned cells.
        small: whether there is so little room that a mix is best called by its rows, `100k`.
    """
    alone = len({row["data"] for row in rows}) == 1 and any(row["settings"] for row in rows)

    def label(row: Row, data: str) -> str:
        settings = [f"{key.rpartition('.')[2]}={value}" for key, value in row["settings"].items()]
        return " ".join([*([] if alone else [data]), *settings])

    places = {data_label(row): row for row in rows}
    names = [label(row, row["data"]) for row in places.values()]
    sizes = [label(row, f"{row['rows'] / 1000:g}k") for row in places.values()]
    shown = sizes if small and len(set(sizes)) == len(sizes) else names
    return shown if len(set(shown)) == len(shown) else list(places)


def _long(labels: Sequence[str], task: str | None) -> bool:
    """Whether labels would run into each other."""
    return len(labels) * (max(map(len, labels)) + 1) > (34 if task is None else 24)


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


CROWDED = 4
"""With more cells the mixes are called by their rows."""


def published(table: Mapping[str, Any]) -> str:
    """Draw the published means and deviations (hollow, grey) beside ours (filled), each in its own panel pair."""
    figure, axes = panels(1, len(METRICS), 9.6, 3.3)
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names = models(table)
    short = dict(
        zip(dict.fromkeys(map(data_label, tuned)), short_labels(tuned, small=len(tuned) > CROWDED), strict=True)
    )
    ours = [short[data_label(row)] for row in tuned]
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
        labels = [*(entry.data.split(":")[0] for entry in PUBLISHED), *ours]
        places = [*range(len(PUBLISHED)), *range(len(PUBLISHED) + 1, len(PUBLISHED) + 1 + len(tuned))]
        axis.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")
        axis.text(1, 1.02, "published", transform=axis.get_xaxis_transform(), ha="center", color=MUTED)
        middle = len(PUBLISHED) + (len(tuned) + 1) / 2
        axis.text(middle, 1.02, "this sweep", transform=axis.get_xaxis_transform(), ha="center", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    legend(figure, table)
    description = "Mean and standard deviation over three runs of the published table, beside those of this sweep."
    return as_svg(figure, "published", description)
