"""Groups runs into cells: runs that differ by their seeds alone. Other settings that differ name the cell."""

from ast import literal_eval
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tometune.common.errors import UserError
from tometune.reporting.sweep import CONTENT, Missing, Sweep, SweepRun

STREAMS = {
    "data": "data sample",
    "order": "data order",
    "adapter": "adapter initialisation",
    "generation": "generation",
}
"""Streams of `seeds` and their names in the report."""


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    label: str  # unique in the report
    model: str
    data: str
    rows: int
    settings: dict[str, Any]  # the settings in which cells with the same model and data differ
    runs: dict[int, SweepRun]  # by seed: runs that use this one seed for every stream that varies in the sweep
    stream_runs: list[SweepRun]  # runs whose streams have different seeds; only the variance by cause uses them

    @property
    def ids(self) -> list[str]:
        """The ids of `runs`."""
        return [run.id for run in self.runs.values()]

    @property
    def arm(self) -> dict[str, list[str]]:
        """The sources that its mix is drawn from alone (`only`) or `without`; empty for all sources."""
        run = next(iter([*self.runs.values(), *self.stream_runs]))
        found = {name: run.settings.get(f"data.pool.{name}") for name in ("only", "without")}
        return {name: literal_eval(sources) for name, sources in found.items() if sources}


def varied_streams(runs: Sequence[SweepRun]) -> list[str]:
    """Return the streams whose seeds differ between runs; the deviation over seeds covers only these."""
    return [name for name in STREAMS if len({run.streams[name] for run in runs}) > 1]


def group(sweep: Sweep) -> tuple[list[Cell], list[str]]:
    """Group the runs of a sweep into cells; also returns notes for readers of the table.

    Raises:
        UserError: two runs have the same settings and seeds, or the same `seeds.data` but other rows, so one of them is
            outdated; or no run uses one seed for all streams.
    """
    found = sweep.runs
    varied = varied_streams(found)
    settings, confounded = _differing(found)
    grouped: dict[tuple[Any, ...], list[SweepRun]] = {}
    for run in found:
        own = tuple((key, run.settings.get(key)) for key in settings)
        grouped.setdefault((run.model, run.rows, run.data, own), []).append(run)
    several = len({run.model for run in found}) > 1
    cells = []
    for model, rows, data, every in sorted(grouped, key=lambda key: (*key[:3], [_rank(each[1]) for each in key[3]])):
        full = ("lora", "full") in every  # full fine-tuning reads no setting of the adapter
        differ = {
            name: value
            for name, value in every
            if not (full and name.startswith("lora.")) and not (value is None and name in CONTENT)
        }
        label = " ".join([*([model] if several else []), data, *(f"{name}={value}" for name, value in differ.items())])
        replicates = _replicates(grouped[model, rows, data, every], varied)
        cells.append(Cell(label, model, data, rows, differ, *replicates))
    if not any(cell.runs for cell in cells):
        raise UserError(
            f"{sweep.folder}: every run sets single streams of `seeds`, so there is no mean over seeds; "
            "add runs without seeds.*, e.g. seed=0"
        )
    count = sum(len(cell.stream_runs) for cell in cells)
    notes = [f"Runs with separately set streams ({count}) count for the variance by cause only."] if count else []
    if empty := [cell.label for cell in cells if not cell.runs]:
        notes.append(f"Not in the table, because no run has one seed for all streams: {', '.join(empty)}.")
    return cells, [*notes, *confounded, *(_content_note(key, found) for key in settings if key in CONTENT)]


def _content_note(key: str, runs: Sequence[SweepRun]) -> str:
    """Return a note: runs of one config differ in the entry `key` of `CONTENT`, which makes them different cells."""
    dates: dict[Any, list[str]] = {}  # of the runs, by value
    for run in runs:
        if (value := run.settings.get(key)) is not None:
            dates.setdefault(value, []).append(str(run.record.get("finished"))[:10])
    texts = [
        f"{value}: {len(own)} run{'s' * (len(own) > 1)}, the last one of {max(own)}" for value, own in dates.items()
    ]
    return (
        f"The {CONTENT[key]} is not the same in all runs ({'; '.join(texts)}). Such runs are different cells, not "
        "seeds of one. Repeat the command of the sweep to complete its cells, and move runs that are outdated out of "
        "its folder."
    )


def _replicates(runs: Sequence[SweepRun], varied: Sequence[str]) -> tuple[dict[int, SweepRun], list[SweepRun]]:
    """Separate the runs with one seed for all varied streams from the others."""
    replicates: dict[int, SweepRun] = {}
    others: list[SweepRun] = []
    by_streams: dict[tuple[int, ...], SweepRun] = {}
    by_sample: dict[int, SweepRun] = {}  # the first run with each `seeds.data`
    for run in runs:
        twin = by_streams.setdefault(tuple(run.streams.values()), run)
        sampled = by_sample.setdefault(run.streams["data"], run)
        other_rows = run.record["data"].get("digest") != sampled.record["data"].get("digest")
        if twin is not run or other_rows:
            raise UserError(
                f"{(sampled if other_rows else twin).id} and {run.id}: the same settings and seeds"
                f"{'.data but other rows' if other_rows else ''}, so a task or the data changed in between; move the "
                "outdated one out of the sweep folder"
            )
        seeds = {run.streams[name] for name in varied} or {int(run.record["seed"])}
        if len(seeds) == 1:
            replicates[seeds.pop()] = run
        else:
            others.append(run)
    return dict(sorted(replicates.items())), others


def _differing(runs: Sequence[SweepRun]) -> tuple[list[str], list[str]]:
    """Return the settings that distinguish cells beyond model and data, and notes on those that vary with the data.

    A setting with one value per model (or, below `data.`, per mix) belongs to that model or mix. Any other setting that
    changes from mix to mix becomes a note, because then the sweep does not vary the data alone. So does a setting that
    always changes together with another.
    """

    def constant(key: str, *by: str) -> bool:
        seen: dict[Any, Any] = {}
        of_runs = ((tuple(getattr(run, name) for name in by), run.settings.get(key)) for run in runs)
        return all(seen.setdefault(group, value) == value for group, value in of_runs)

    settings: list[str] = []
    notes: list[str] = []
    for key in sorted({key for run in runs for key in run.settings}):
        if constant(key, "model") or (key.startswith("data.") and constant(key, "data")):
            continue
        if constant(key, "model", "data"):
            values = {run.data: run.settings.get(key) for run in sorted(runs, key=lambda run: run.rows)}
            listed = ", ".join(f"{data}: {value}" for data, value in values.items())
            notes.append(f"{key} changes together with the data ({listed}), so the comparisons cover both.")
        else:
            settings.append(key)
    own: dict[tuple[int, ...], str] = {}  # the last one of the settings that divide the runs in the same way
    for key in (key for key in settings if key not in CONTENT and "lora" not in settings):
        of_runs = [run.settings.get(key) for run in runs]
        division = tuple(map(of_runs.index, of_runs))
        if division in own:  # e.g. lora_alpha = r
            notes.append(f"{own[division]} changes together with {key}, so the comparisons cover both.")
        own[division] = key
    return [key for key in settings if key in own.values() or key in CONTENT or "lora" in settings], notes


def _rank(value: Any) -> tuple[bool, float, str]:
    """Sort key: numbers by size, then everything else by its text."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def pairs(cells: Sequence[Cell], all_pairs: bool = False) -> list[tuple[Cell, Cell]]:
    """Return the pairs of cells to compare, the later cell first: one model, and one difference (data or a setting).

    `all_pairs` gives all of them, whatever differs. Otherwise each arm of a sweep over sources is compared with the mix
    of all sources only, because two arms differ in two things.
    """
    found = [(later, earlier) for number, later in enumerate(cells) for earlier in cells[:number]]
    return found if all_pairs else [pair for pair in found if _one_difference(*pair)]


def _one_difference(later: Cell, earlier: Cell) -> bool:
    both = [key for key in later.settings if key in earlier.settings or key not in CONTENT]
    differ = sum(later.settings[key] != earlier.settings.get(key) for key in both) + (later.data != earlier.data)
    two_arms = later.arm and earlier.arm and later.arm != earlier.arm
    return later.model == earlier.model and differ == 1 and not two_arms


def one_factor(cell: Cell, stream: str) -> list[list[SweepRun]]:
    """Return groups of a cell's runs that differ in this stream and in no other."""
    groups: dict[tuple[int, ...], list[SweepRun]] = {}
    for run in [*cell.runs.values(), *cell.stream_runs]:
        others = tuple(seed for name, seed in run.streams.items() if name != stream)
        groups.setdefault(others, []).append(run)
    return [runs for runs in groups.values() if len(runs) > 1]


def expected_seeds(cell: Cell, missing: Iterable[Missing]) -> int:
    """Return how many runs a cell should have: its own, plus the missing runs that may belong to it."""

    def belongs(absent: Missing) -> bool:
        others = all(str(absent.settings.get(key, value)) == str(value) for key, value in cell.settings.items())
        return absent.data == cell.data and absent.model in (cell.model, None) and others

    return len(cell.runs) + sum(map(belongs, missing))
