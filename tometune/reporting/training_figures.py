"""Figures of training: loss curves and throughput."""

import json
from collections.abc import Sequence

from tometune.common.errors import UserError
from tometune.reporting.cells import Cell
from tometune.reporting.svg import ACCENTS, MUTED, WIDTH, as_svg, panels
from tometune.reporting.sweep import SweepRun

COLUMNS = 3


def loss(cells: Sequence[Cell], models: Sequence[str]) -> str | None:
    """Draw the training loss of every run, one panel per cell on shared axes; None if nothing was logged."""
    curves = [[curve(run) for run in cell.runs.values()] for cell in cells]
    if not any(points for cell in curves for points in cell):
        return None
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = panels(rows, columns, WIDTH if columns > 1 else 5.5, 2.7 * rows, sharex=True, sharey=True)
    flat = [axis for row in axes for axis in row]
    for axis, cell, runs in zip(flat, cells, curves, strict=False):
        axis.set_title(cell.label)
        for points in runs:
            colour = ACCENTS[models.index(cell.model) % len(ACCENTS)]
            steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
            axis.plot(steps, losses, color=colour, linewidth=1.3, alpha=0.75)
    for axis in flat[len(cells) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("training loss")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return as_svg(figure, "loss", "Training loss by step, one line per seed, one panel per cell.")


def curve(run: SweepRun) -> list[dict[str, float]]:
    """Read a run's metrics.jsonl.

    Raises:
        UserError: a line is broken; names it.
    """
    path = run.folder / "metrics.jsonl"
    points: list[dict[str, float]] = []
    if not path.exists():
        return points
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                point = json.loads(line)
                points.append({"step": float(point["step"]), "loss": float(point["loss"])})
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
        colour = ACCENTS[models.index(cell.model) % len(ACCENTS)]
        axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.75, markersize=6)
    axis.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(0, 1.08 * max(rate for values in rates for rate in values))
    axis.grid(visible=True, axis="x")
    axis.set_xlabel("training tokens per second without padding, one dot per run", color=MUTED)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return as_svg(figure, "throughput", "Training tokens per second by cell, one dot per run.")
