"""Cells: runs that differ by their seeds alone. What else differs names the cell."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tometune.common.errors import UserError
from tometune.reporting.sweep import Missing, Sweep, SweepRun

STREAMS = {"data": "data sample", "order": "order", "adapter": "adapter", "generation": "generation"}
"""Streams of `seeds`, by what they are called in the report."""


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    label: str
    """Unique in the report."""

    model: str
    data: str
    rows: int
    settings: dict[str, Any]
    """Hyperparameters by which this cell differs from others of the same model and data."""

    runs: dict[int, SweepRun]
    """The replicates by seed: runs in which every stream that varies in the sweep has that seed."""

    apart: list[SweepRun]
    """Runs in which some streams were varied and others not: for the variance by cause, not for the mean."""


@dataclass(frozen=True)
class Grid:
    """All cells of a sweep."""

    cells: list[Cell]
    varied: list[str]
    """Streams that differ between runs: what the deviation over seeds is over."""

    notes: list[str]


def group(sweep: Sweep) -> Grid:
    """Group the runs of a sweep into cells.

    Raises:
        UserError: two runs have the same settings and seeds, so that one of them is outdated, or no run has one seed
            for all streams.
    """
    varied = [name for name in STREAMS if len({run.streams[name] for run in sweep.runs}) > 1]
    settings, confounded = _differing(sweep.runs)
    grouped: dict[tuple[Any, ...], list[SweepRun]] = {}
    for run in sweep.runs:
        own = tuple((key, run.settings.get(key)) for key in settings)
        grouped.setdefault((_model(run), _rows(run), _data(run), own), []).append(run)
    several = len({_model(run) for run in sweep.runs}) > 1
    ordered = sorted(grouped.items(), key=lambda entry: (*entry[0][:3], [_rank(value) for _, value in entry[0][3]]))
    cells = []
    for (model, rows, data, every), runs in ordered:
        full = ("lora", "full") in every  # of an adapter it reads nothing
        own = tuple((key, value) for key, value in every if not (full and key.startswith("lora.")))
        label = " ".join([*([model] if several else []), data, *(f"{key}={value}" for key, value in own)])
        replicates, apart = _replicates(runs, varied)
        cells.append(Cell(label, model, data, rows, dict(own), replicates, apart))
    if not any(cell.runs for cell in cells):
        raise UserError(
            f"{sweep.folder}: every run has some streams of `seeds` set apart, so there is no mean over seeds; "
            "add runs without seeds.*, e.g. seed=0"
        )
    return Grid(cells, varied, [*_left_out(cells), *(_confounded(key, sweep.runs) for key in confounded)])


def _replicates(runs: Sequence[SweepRun], varied: Sequence[str]) -> tuple[dict[int, SweepRun], list[SweepRun]]:
    """Tell runs of a whole seed from runs whose streams were set apart."""
    whole: dict[int, SweepRun] = {}
    by_streams: dict[tuple[int, ...], SweepRun] = {}
    for run in runs:
        streams = tuple(run.streams.values())
        twin = by_streams.setdefault(streams, run)
        if twin is not run:
            raise UserError(
                f"{twin.id} and {run.id}: the same settings and seeds, so their inputs (data, model or task files) "
                "changed in between; move the outdated one out of the sweep folder"
            )
        seeds = {run.streams[name] for name in varied} or {int(run.record["seed"])}
        if len(seeds) == 1:
            whole[seeds.pop()] = run
    apart = [run for run in runs if run not in whole.values()]
    return dict(sorted(whole.items())), apart


def _differing(runs: Sequence[SweepRun]) -> tuple[list[str], list[str]]:
    """Return the settings that tell cells apart beyond model and data, and those that go along with the data.

    A setting that each model (or, below `data.`, each mix) has one value of is part of it. One that changes from mix
    to mix is told as a note: such a sweep does not vary the data alone.
    """
    settings, confounded = [], []
    keys = sorted({key for run in runs for key in run.settings})
    for key in keys:
        if _constant(key, runs, _model) or (key.startswith("data.") and _constant(key, runs, _data)):
            continue
        if _constant(key, runs, lambda run: (_model(run), _data(run))):
            confounded.append(key)
        else:
            settings.append(key)
    return settings, confounded


def _constant(key: str, runs: Iterable[SweepRun], by: Any) -> bool:
    """Whether a setting has one value for each value of `by(run)`."""
    seen: dict[Any, Any] = {}
    return all(seen.setdefault(by(run), run.settings.get(key)) == run.settings.get(key) for run in runs)


def _left_out(cells: Sequence[Cell]) -> list[str]:
    """Say which runs are not in the means."""
    apart = sum(len(cell.apart) for cell in cells)
    told = []
    if apart:
        told.append(f"Runs with streams set apart ({apart}) count for the variance by cause and not for the means.")
    empty = [cell.label for cell in cells if not cell.runs]
    if empty:
        told.append(f"Without a run of a whole seed, so not in the table: {', '.join(empty)}.")
    return told


def _confounded(key: str, runs: Sequence[SweepRun]) -> str:
    """Say which data has which value of a setting."""
    values = {_data(run): run.settings.get(key) for run in sorted(runs, key=_rows)}
    told = ", ".join(f"{data}: {value}" for data, value in values.items())
    return f"{key} differs along with the data ({told}): the comparisons are of both together."


def _model(run: SweepRun) -> str:
    return str(run.record["model"]["name"])


def _data(run: SweepRun) -> str:
    return str(run.record["data"]["name"])


def _rows(run: SweepRun) -> int:
    return int(run.record["data"]["rows"])


def _rank(value: Any) -> tuple[bool, float, str]:
    """Order numbers by size, before everything else by its text."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def pairs(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """Return the numbers of cells to compare, the later one first: of one model, and different in one thing only.

    Either the data differs, or one hyperparameter does.
    """
    found = []
    for second, later in enumerate(cells):
        for first, earlier in enumerate(cells[:second]):
            differ = sum(later.settings[key] != earlier.settings.get(key) for key in later.settings)
            if later.model == earlier.model and differ + (later.data != earlier.data) == 1:
                found.append((second, first))
    return found


def one_factor(cell: Cell, stream: str) -> list[list[SweepRun]]:
    """Return groups of a cell's runs that differ in this stream and in no other."""
    groups: dict[tuple[int, ...], list[SweepRun]] = {}
    for run in [*cell.runs.values(), *cell.apart]:
        others = tuple(seed for name, seed in run.streams.items() if name != stream)
        groups.setdefault(others, []).append(run)
    return [runs for runs in groups.values() if len(runs) > 1]


def expected_seeds(cell: Cell, missing: Iterable[Missing]) -> int:
    """Return the runs a cell should have: its own, and the missing ones that are not known to belong elsewhere."""

    def belongs(absent: Missing) -> bool:
        others = all(str(absent.settings.get(key, value)) == str(value) for key, value in cell.settings.items())
        return absent.data == cell.data and absent.model in (cell.model, None) and others

    return len(cell.runs) + sum(map(belongs, missing))
