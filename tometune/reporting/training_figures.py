"""The pictures of training: loss curves, what the mixes are made of, throughput."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.patches import Patch

from tometune.common.errors import UserError
from tometune.reporting.cells import Cell
from tometune.reporting.svg import ACCENTS, HUES, INK, MUTED, PAPER, as_svg, panels
from tometune.reporting.sweep import SweepRun

SOURCES = len(HUES) - 1
"""Sources shown by name; the rest are one."""

COLUMNS = 3


def loss(cells: Sequence[Cell], models: Sequence[str]) -> str | None:
    """Draw the training loss of every run, a panel a cell on shared axes; None where nothing was logged."""
    curves = [[curve(run) for run in cell.runs.values()] for cell in cells]
    if not any(points for cell in curves for points in cell):
        return None
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = panels(rows, columns, 9.6 if columns > 1 else 5.5, 2.7 * rows, sharex=True, sharey=True)
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
    return as_svg(figure, "loss", "Training loss by step, one line a seed, one panel a cell.")


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
                raise UserError(f"{path}:{number}: not a line of metrics ({error!r}); remove the line") from None
    return points


def composition(cells: Sequence[Cell]) -> str | None:
    """Draw how many rows of each mix come from which source; None where no mix was recorded.

    Of a mix that is drawn anew for each seed, the first seed's is shown.
    """
    mixes: dict[str, dict[str, int]] = {}
    for cell in cells:
        found = sources(next(iter(cell.runs.values())).folder)
        if found:
            mixes.setdefault(cell.data, found)
    return stacked(mixes) if mixes else None


def stacked(mixes: Mapping[str, Mapping[str, int]]) -> str:
    """Draw the rows by source of several mixes, a bar each.

    Args:
        mixes: rows by source, by the name of the mix.
    """
    total: Counter[str] = Counter()
    for counts in mixes.values():
        total.update(counts)
    named = [name for name, _ in total.most_common(SOURCES)]
    figure, ((axis,),) = panels(1, 1, 9.6, 1.35 + 0.42 * len(mixes))
    for place, counts in enumerate(mixes.values()):
        shares = [*((name, counts.get(name, 0)) for name in named)]
        rest = sum(counts.values()) - sum(count for _, count in shares)
        left = 0
        for hue, (_, count) in zip(HUES, [*shares, ("", rest)] if len(total) > SOURCES else shares, strict=False):
            axis.barh(place, count, left=left, height=0.62, color=hue, edgecolor=PAPER, linewidth=0.8)
            left += count
        axis.annotate(f"{left:,}", (left, place), (6, 0), textcoords="offset points", va="center", color=INK)
    axis.set_yticks(range(len(mixes)), list(mixes))
    axis.set_ylim(len(mixes) - 0.5, -0.5)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.margins(x=0.09)
    axis.spines["bottom"].set_visible(False)
    handles = [_swatch(hue, name) for hue, name in zip(HUES, named, strict=False)]
    handles += [_swatch(HUES[-1], f"{len(total) - SOURCES} others")] if len(total) > SOURCES else []
    figure.legend(handles=handles, loc="outside lower left", ncols=4, handlelength=1, handleheight=1)
    return as_svg(figure, "sources", f"Rows of each mix by source: {_told(mixes)}.")


def sources(folder: Path) -> dict[str, int]:
    """Return the rows by source of a run's mix; empty where it is not recorded."""
    path = folder / "mix.json"
    if not path.exists():
        return {}
    try:
        found: dict[str, int] = json.loads(path.read_text(encoding="utf-8")).get("sources", {})
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); delete it, and the report shows no sources") from None
    return found


def throughput(cells: Sequence[Cell], models: Sequence[str]) -> str | None:
    """Draw the tokens a second of every run; None where nothing was trained."""
    rates = {cell.label: _rates(cell) for cell in cells}
    if not any(rates.values()):
        return None
    figure, ((axis,),) = panels(1, 1, 9.6, 0.9 + 0.34 * len(cells))
    for place, cell in enumerate(cells):
        colour = ACCENTS[models.index(cell.model) % len(ACCENTS)]
        axis.plot(rates[cell.label], [place] * len(rates[cell.label]), "o", color=colour, alpha=0.75, markersize=6)
    axis.set_yticks(range(len(cells)), list(rates))
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(0, 1.08 * max(rate for cell in rates.values() for rate in cell))
    axis.grid(visible=True, axis="x")
    axis.set_xlabel("tokens a second in training, padding not counted; one dot a run", color=MUTED)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return as_svg(figure, "throughput", "Tokens a second in training, one dot a run, by cell.")


def _rates(cell: Cell) -> list[float]:
    """Return the throughput of each run of a cell."""
    return [run.record["train"]["tokens_per_second"] for run in cell.runs.values() if run.record.get("train")]


def _swatch(colour: str, name: str) -> Patch:
    """Return an entry of a legend."""
    return Patch(facecolor=colour, label=name)


def _told(mixes: Mapping[str, Mapping[str, int]]) -> str:
    """Put the mixes into words."""
    return "; ".join(
        f"{mix}: " + ", ".join(f"{count:,} {name}" for name, count in list(counts.items())[:SOURCES])
        for mix, counts in mixes.items()
    )
