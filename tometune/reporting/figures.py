"""Figures of scores and of training: cells with intervals, effects of sources, curves over sizes, loss."""

import json
from collections.abc import Sequence
from itertools import cycle, product
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from tometune.evaluation.metrics import label
from tometune.reporting import conclusions
from tometune.reporting.conclusions import Table, data_label, models, tuned_rows
from tometune.reporting.grouping import Cell
from tometune.reporting.html import ACCENTS, COLUMNS, MUTED, PAPER, as_grid, panels
from tometune.reporting.mix_figures import label as mix_label
from tometune.reporting.sweep import SweepRun

FEWEST = 4  # values of a number from which on scores are drawn over it
LETTERS = 102  # of labels on the x axis that fit next to each other, over all panels of a line
STEPS = [1, 2, 2.5, 5, 10]  # tick distances, times a power of ten
FAR = 1.6  # a base score is drawn as a line if the axis grows by at most this factor
SLANTED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
INTERVAL: dict[str, Any] = {"linewidth": 2, "alpha": 0.45}
OF_ONE_SEED: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (1, 2))}  # an interval that covers examples only
DASHED: dict[str, Any] = {"linewidth": 1.1, "linestyle": (0, (3, 3))}


def colour_of(names: Sequence[str], model: str) -> str:
    """Return the accent colour of a model; `names` are all models of the table."""
    return ACCENTS[names.index(model) % len(ACCENTS)]


def means(table: Table) -> str:
    """Draw the mean and interval of each cell, with each seed as a dot; one panel per metric."""
    metrics = table["metrics"]
    axes = panels(list(map(label, metrics)), 3.5)
    for axis, metric in zip(axes, metrics, strict=True):
        _draw_cells(axis, table, metric, COLUMNS)
    values = "; ".join(
        f"{row['cell']}: " + ", ".join(f"{label(metric)} {row[metric]['mean']:.3f}" for metric in metrics)
        for row in table["rows"]
    )
    level = f"{table['interval']['confidence']:.0%}"
    description = f"Mean scores with {level} intervals, and each seed as a dot. {values}."
    return as_grid(axes, "means", description, _legend(table))


def tasks(table: Table) -> str:
    """Draw the same by task: one row per task, one column per metric."""
    names, metrics = list(table["tasks"]), [metric for metric in table["metrics"] if "/" not in metric]
    axes = panels([label(metric) for _, metric in product(names, metrics)], 2.1, len(metrics))
    for axis, (name, metric) in zip(axes, product(names, metrics), strict=True):
        axis.set_ylabel(fill(name.replace("_", " "), 20))
        _draw_cells(axis, table, metric, len(metrics), name)
    description = f"Means with intervals by task ({', '.join(names)}) and metric."
    return as_grid(axes, "tasks", description, _legend(table), len(metrics))


def _legend(table: Table) -> list[tuple[str, str]]:
    names = models(table)
    return [(colour_of(names, name), name) for name in names] if len(names) > 1 else []


def _draw_cells(axis: Axes, table: Table, metric: str, columns: int, task: str | None = None) -> None:
    """Draw one of `columns` panels: cells along x; means over tasks, or the scores on `task`, along y."""

    def scores(row: Table) -> Table:  # of a cell or a run
        found: Table = row if task is None else row["tasks"][task]
        return found

    names, tuned = models(table), tuned_rows(table)
    labels = short_labels(tuned)
    shown: list[float] = []
    for row in tuned:
        number, values = names.index(row["model"]), scores(row)[metric]
        place = list(labels).index(data_label(row)) + 0.28 * (number - (len(names) - 1) / 2)
        dots = [scores(run)[metric] for run in row["runs"]]
        ends = values["ci_low"], values["ci_high"]
        shown += [values["mean"], *ends, *dots]
        colour = ACCENTS[number % len(ACCENTS)]
        single = len(dots) < 2
        axis.plot([place, place], ends, color=colour, **(OF_ONE_SEED if single else INTERVAL))
        if single:
            axis.plot([place], [values["mean"]], "o", color=PAPER, markersize=6, markeredgecolor=colour)
            continue
        edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 1.2}
        axis.plot([place], [values["mean"]], "o", color=colour, markersize=7, **edge)
        axis.plot([place + 0.16] * len(dots), dots, "o", color=colour, markersize=3.4, alpha=0.75, markeredgewidth=0)
    margin = 0.08 * (max(shown) - min(shown)) or 0.01
    bases = [(row["model"], scores(row)[metric]["mean"]) for row in table["rows"] if row["stage"] == "base"]
    _draw_bases(axis, bases, names, min(shown) - margin, max(shown) + margin)
    axis.set_xlim(-0.6, len(labels) - 0.4)
    room = LETTERS / columns - (0 if task is None else 4)  # next to the task's name
    crowded = len(labels) * (max(map(len, labels.values())) + 1) > room
    axis.set_xticks(range(len(labels)), list(labels.values()), **(SLANTED if crowded else {}))
    axis.yaxis.set_major_locator(MaxNLocator(5 if task is None else 4, steps=STEPS))


def _draw_bases(axis: Axes, bases: Sequence[tuple[str, float]], names: Sequence[str], low: float, high: float) -> None:
    """Draw the scores of the base models as lines if they are close to `low` and `high`; sets the y limits."""
    for model, value in bases:
        reach = max(high, value) - min(low, value)
        if reach <= FAR * (high - low):
            low, high = min(low, value - 0.06 * reach), max(high, value + 0.06 * reach)
            axis.axhline(value, color=colour_of(names, model) if len(bases) > 1 else MUTED, **DASHED)
    axis.set_ylim(low, high)


def short_labels(rows: Sequence[Table]) -> dict[str, str]:
    """Return short labels for the x axis by `data_label`, or the long ones if short ones would be ambiguous.

    Cells with the same data are labelled by their settings. Keys are reduced to their last part: `lora.r=8` to `r=8`.
    """
    same_data = len({row["data"] for row in rows}) == 1 and any(row["settings"] for row in rows)
    found = {}
    for row in rows:
        settings = [f"{key.rpartition('.')[2]}={value}" for key, value in row["settings"].items()]
        found[data_label(row)] = " ".join([*([] if same_data else [row["data"]]), *settings])
    return found if len(set(found.values())) == len(found) else {label: label for label in found}


def loss(cells: Sequence[Cell], names: Sequence[str]) -> str | None:
    """Draw the training loss of every run, one panel per cell on shared axes; None if nothing was logged."""
    curves = [[losses(run) for run in cell.runs.values()] for cell in cells]
    if not any(points for cell in curves for points in cell):
        return None
    axes = panels([fill(cell.label, 32) for cell in cells], 2.7)
    steps, values = zip(*(point for cell in curves for points in cell for point in points), strict=True)
    for axis, cell, runs in zip(axes, cells, curves, strict=True):
        axis.set(xlabel="step", xlim=(0, max(steps) * 1.03), ylim=(min(values) * 0.97, max(values) * 1.03))
        for points in runs:
            axis.plot(*zip(*points, strict=True), color=colour_of(names, cell.model), linewidth=1.3, alpha=0.75)
    return as_grid(axes, "loss", "Training loss by step, one line per seed, one panel per cell.")


def losses(run: SweepRun) -> list[tuple[float, float]]:
    """Return (step, loss) of each line of a run's metrics.jsonl."""
    path = run.folder / "metrics.jsonl"
    try:
        points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(float(point["step"]), float(point["loss"])) for point in points]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a line is broken ({error!r})") from None


def forest(table: Table) -> str | None:
    """Draw the effect of each source with its interval, one panel per metric; None without arms over sources."""
    found, metrics = conclusions.source_effects(table), table["metrics"]
    if not found:
        return None
    main = conclusions.main_metric(list(next(iter(found.values())).values()))
    names = sorted(found, key=lambda name: found[name][main]["delta"])
    texts = ["\n".join(map(mix_label, name.split(" + "))) for name in names]
    height = max(0.36, 0.2 * max(1 + text.count("\n") for text in texts))
    axes = panels(list(map(label, metrics)), 1.1 + height * len(names))
    for axis, metric in zip(axes, metrics, strict=True):
        axis.axvline(0, color=MUTED, **DASHED)
        for place, entry in enumerate(found[name][metric] for name in names):
            style = INTERVAL if entry["interval_over"] != "examples" else OF_ONE_SEED
            axis.plot([entry["ci_low"], entry["ci_high"]], [place, place], color=ACCENTS[0], **style)
            inside = ACCENTS[0] if conclusions.significant(entry, table) else PAPER
            axis.plot([entry["delta"]], [place], "o", markersize=7, color=inside, markeredgecolor=ACCENTS[0])
        axis.grid(visible=True, axis="x")
        axis.grid(visible=False, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        axis.set_yticks(range(len(names)), texts)
        axis.set_ylim(-0.6, len(names) - 0.4)
    described = "; ".join(f"{name} {found[name][main]['delta']:+.3f}" for name in reversed(names))
    description = f"Effect of each source with its interval. {label(main)}: {described}."
    return as_grid(axes, "forest", description)


def curve(table: Table) -> str | None:
    """Draw scores over the rows, or over a setting, with intervals; None if no number has `FEWEST` values."""
    rows = tuned_rows(table)
    key = _axis(rows)
    if key is None:
        return None
    series: dict[str, list[Table]] = {}
    for row in rows:
        texts = [row["model"] if len(models(table)) > 1 else "", row["data"] if key != "rows" else ""]
        texts += [f"{name.rpartition('.')[2]}={value}" for name, value in row["settings"].items() if name != key]
        series.setdefault(" ".join(filter(None, texts)), []).append(row)
    metrics, values = table["metrics"], sorted({_value(row, key) for row in rows})
    axes = panels(list(map(label, metrics)), 3.4)
    for axis, metric in zip(axes, metrics, strict=True):
        for number, (colour, points) in enumerate(zip(cycle(ACCENTS), series.values(), strict=False)):
            points = sorted(points, key=lambda row: _value(row, key))
            places = [_value(row, key) * 1.08**number for row in points]  # side by side, so that intervals stay visible
            means = [row[metric]["mean"] for row in points]
            axis.plot(places, means, "o-", color=colour, markersize=6, markeredgecolor=PAPER)
            ends = [[row[metric][end] for row in points] for end in ("ci_low", "ci_high")]
            axis.vlines(places, *ends, color=colour, **INTERVAL)
        axis.set_xscale("log")
        axis.set_xticks(values, [f"{value / 1000:g}k" if value >= 1000 else f"{value:g}" for value in values])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(key)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    legend = [*zip(cycle(ACCENTS), series, strict=False)] if len(series) > 1 else []
    return as_grid(axes, "curve", f"Mean scores over {key} with intervals.", legend)


def _axis(rows: Sequence[Table]) -> str | None:
    """Return `rows` or the setting that has the most different numbers, if they are at least `FEWEST`."""
    found = {}
    for key in ["rows", *dict.fromkeys(name for row in rows for name in row["settings"])]:
        values = [_value(row, key) for row in rows]
        if all(isinstance(value, int | float) and value > 0 for value in values):
            found[key] = len(set(values))
    best = max(found, key=found.__getitem__, default=None)
    return best if best is not None and found[best] >= FEWEST else None


def _value(row: Table, key: str) -> Any:
    return row["rows"] if key == "rows" else row["settings"].get(key)
