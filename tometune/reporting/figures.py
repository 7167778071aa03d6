"""Figures of scores and of training: cells with their intervals and seeds, loss curves, throughput."""

import json
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tometune.common.errors import UserError
from tometune.evaluation.metrics import label
from tometune.reporting.cells import Cell
from tometune.reporting.conclusions import PUBLISHED
from tometune.reporting.scores import ROUGE
from tometune.reporting.svg import ACCENTS, GRID, INK, MUTED, PAPER, WIDTH, as_svg, panels
from tometune.reporting.sweep import SweepRun
from tometune.reporting.text import data_label

Row = Mapping[str, Any]

COLUMNS = 3  # panels per line
ACROSS = 4  # up to this many tasks are drawn as columns, more as rows
CROWDED = 4  # with more cells, the figure of the published results labels mixes by their rows
STEPS = [1, 2, 2.5, 5, 10]  # tick distances, times a power of ten
FAR = 1.6  # a base model's score is drawn as a line if the axis grows by at most this factor, else written at the edge
SLANTED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}


def models(table: Mapping[str, Any]) -> list[str]:
    """Return the models in the order of the table; the index of each is that of its accent colour."""
    return list(dict.fromkeys(row["model"] for row in table["rows"]))


def _colour(names: Sequence[str], model: str) -> str:
    return ACCENTS[names.index(model) % len(ACCENTS)]


def _grid(count: int, width: float, height: float, **options: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with this many visible panels, `COLUMNS` per line, each line this many inches high."""
    lines = -(-count // COLUMNS)
    figure, axes = panels(lines, min(COLUMNS, count), width, height * lines, **options)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def means(table: Mapping[str, Any]) -> str:
    """Draw the mean and interval of each cell, with each seed as a dot; one panel per metric."""
    metrics = table["metrics"]
    figure, axes = _grid(len(metrics), WIDTH, 3.5 + 0.25 * (len(_labels(table["rows"])) > 4))
    for axis, metric in zip(axes, metrics, strict=True):
        axis.set_title(label(metric))
        _draw_cells(axis, table, metric)
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
    wrapped = [fill(name.replace("_", " "), 20 if by_row else 84 // len(names)) for name in names]
    if by_row:
        figure, axes = panels(len(names), len(metrics), WIDTH, 0.6 + 1.7 * len(names), sharex=True)
        heads, sides = [label(metric) for metric in metrics], wrapped
    else:
        figure, axes = panels(len(metrics), len(names), WIDTH, 2.15 * len(metrics), sharex=True)
        heads, sides = wrapped, [label(metric) for metric in metrics]
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
            colour = _colour(names, row["model"])
            mean, deviation = row[metric]["mean"], row[metric]["std"] or 0.0
            axis.plot([place, place], [mean - deviation, mean + deviation], color=colour, linewidth=2, alpha=0.45)
            axis.plot([place], [mean], "o", color=colour, markersize=7, markeredgecolor=PAPER)
        axis.axvline(len(PUBLISHED), color=GRID, linewidth=0.8)
        texts = [*(entry.data.split(":")[0] for entry in PUBLISHED), *(short[data_label(row)] for row in tuned)]
        places = [*range(len(PUBLISHED)), *range(first, first + len(tuned))]
        axis.set_xticks(places, texts, **SLANTED)
        axis.text(1, 1.02, "published", transform=axis.get_xaxis_transform(), ha="center", color=MUTED)
        middle = first + (len(tuned) - 1) / 2
        axis.text(middle, 1.02, "this sweep", transform=axis.get_xaxis_transform(), ha="center", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    _legend(figure, table)
    description = "Mean and standard deviation over three runs of the published table, next to those of this sweep."
    return as_svg(figure, "published", description)


def _legend(figure: Figure, table: Mapping[str, Any]) -> None:
    """Name the models if there are several."""
    names = models(table)
    if len(names) > 1:
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 7}
        marks = [Line2D([], [], color=_colour(names, name), label=name, **dot) for name in names]
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
        _mark(axis, place, values(row), dots, _colour(names, row["model"]))
    margin = 0.08 * (max(shown) - min(shown)) or 0.01
    bases = [(names.index(row["model"]), values(row)["mean"]) for row in table["rows"] if row["stage"] == "base"]
    axis.set_ylim(*_draw_bases(axis, bases, min(shown) - margin, max(shown) + margin))
    axis.set_xlim(-0.6, len(labels) - 0.4)
    texts = short_labels(tuned, small=task is not None)
    crowded = len(texts) * (max(map(len, texts)) + 1) > (34 if task is None else 24)
    axis.set_xticks(range(len(labels)), texts, **(SLANTED if crowded else {}))
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
    """Draw the base models as lines if they are close, else note them at the edge.

    `bases` holds the index and score of each model. Takes and returns the limits of the y axis.
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

    Parts that all cells share are left out, and keys are reduced to their last part: `lora.r=8` becomes `r=8`. If
    `small`, there is so little space that a mix is labelled by its rows, `100k`.
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


def loss(cells: Sequence[Cell], models: Sequence[str]) -> str | None:
    """Draw the training loss of every run, one panel per cell on shared axes; None if nothing was logged."""
    curves = [[curve(run) for run in cell.runs.values()] for cell in cells]
    if not any(points for cell in curves for points in cell):
        return None
    figure, axes = _grid(len(cells), WIDTH if len(cells) > 1 else 5.5, 2.7, sharex=True, sharey=True)
    for number, (axis, cell, runs) in enumerate(zip(axes, cells, curves, strict=True)):
        axis.set_title(cell.label)
        for points in runs:
            axis.plot(*zip(*points, strict=True), color=_colour(models, cell.model), linewidth=1.3, alpha=0.75)
        if number % COLUMNS == 0:
            axis.set_ylabel("training loss")
        if number // COLUMNS == (len(cells) - 1) // COLUMNS:
            axis.set_xlabel("step")
    return as_svg(figure, "loss", "Training loss by step, one line per seed, one panel per cell.")


def curve(run: SweepRun) -> list[tuple[float, float]]:
    """Return (step, loss) of each line of a run's metrics.jsonl.

    Raises:
        UserError: a line is broken; names it.
    """
    path = run.folder / "metrics.jsonl"
    points: list[tuple[float, float]] = []
    if not path.exists():
        return points
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                point = json.loads(line)
                points.append((float(point["step"]), float(point["loss"])))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a line of metrics ({error!r}); delete the line") from None
    return points


def throughput(cells: Sequence[Cell], models: Sequence[str]) -> str | None:
    """Draw the training throughput of every run; None if nothing was trained."""
    rates = [
        [run.record["train"]["tokens_per_second"] for run in cell.runs.values() if run.record.get("train")]
        for cell in cells
    ]
    if not any(rates):
        return None
    figure, ((axis,),) = panels(1, 1, WIDTH, 0.9 + 0.34 * len(cells))
    for place, (cell, values) in enumerate(zip(cells, rates, strict=True)):
        axis.plot(values, [place] * len(values), "o", color=_colour(models, cell.model), alpha=0.75, markersize=6)
    axis.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(0, 1.08 * max(rate for values in rates for rate in values))
    axis.grid(visible=True, axis="x")
    axis.set_xlabel("training tokens per second without padding, one dot per run", color=MUTED)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return as_svg(figure, "throughput", "Training tokens per second by cell, one dot per run.")
