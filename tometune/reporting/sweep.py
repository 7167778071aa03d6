"""A sweep folder: its completed runs with their settings and seeds, and the missing runs with the reasons."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError, did_you_mean
from tometune.config.command_line import parse
from tometune.config.root import Config
from tometune.runs.identity import identity
from tometune.runs.run import REPEAT, DamageError, read_record, score_problems
from tometune.runs.stored import config_of
from tometune.runs.sweep_file import NAME, read_cells
from tometune.tracking.tracker import flatten

log = logging.getLogger(__name__)

CONTENT = {
    "data.base": "content of data.base",
    "data.pool": "content of data.pool",
    "model.dtype": "number format of the model",
    "meaning": "version of tometune that made the run",
}
"""Things that can differ between runs of one config, and their names in notes."""


@dataclass(frozen=True)
class SweepRun:
    """A completed run."""

    id: str
    folder: Path
    model: str
    data: str
    rows: int
    record: dict[str, Any]  # its run.json
    # What can change the result, except seeds, flat: `{"trainer.learning_rate": 2e-4, …}`; with the keys of `CONTENT`.
    settings: dict[str, Any]
    streams: dict[str, int]  # seed of each stream: data, order, adapter, generation
    design: str | None = None  # `sweep.design`


@dataclass(frozen=True)
class Missing:
    """A cell without a completed run."""

    run_id: str
    model: str | None
    data: str | None
    seed: int | None
    settings: dict[str, Any]  # as far as they are known, flat; values may be text
    reason: str


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep folder."""

    folder: Path
    runs: list[SweepRun]
    missing: list[Missing]
    notes: list[str]  # for readers of the table

    @property
    def design(self) -> str | None:
        """`sweep.design` of its runs."""
        return next((run.design for run in self.runs if run.design), None)


class AbsentError(Exception):
    """A run cannot be in a table; the text is the reason."""


def read_sweep(folder: Path, run_folders: Sequence[Path] = ()) -> Sweep:
    """Read a sweep folder; or these runs, whose report is written into the folder.

    Raises:
        UserError: it does not exist or holds no runs, or no run is completed.
    """
    if not folder.is_dir():
        others = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, others) or f"; sweeps found: {', '.join(sorted(others)) or 'none'}"
        raise UserError(f"{folder}: no such sweep folder{hint}")
    expected = {} if run_folders else {cell.name: cell.listed() for cell in read_cells(folder)}
    places = {path.name: path for path in _folders_of_runs(folder, run_folders)}
    if not places and not expected:
        raise UserError(f"{folder}: holds no runs; make some with tometune train -m sweep.name={folder.name}")
    runs, missing = [], []
    for name in dict.fromkeys([*places, *expected]):
        cell = expected.get(name, {})
        try:
            if name not in places:
                raise AbsentError(f"failed: {cell['error']}" if cell.get("error") else "not started")
            runs.append(_read_run(places[name]))
        except AbsentError as reason:
            missing.append(_missing(places.get(name, folder / name), name, str(reason), cell))
    missing.sort(key=lambda cell: cell.run_id)
    if not runs:
        first = f"{missing[0].run_id}: {missing[0].reason}"
        raise UserError(f"{folder}: none of its {len(missing)} runs is completed ({first}); run the sweep again")
    extra = sorted(run.id for run in runs if expected and run.id not in expected)
    notes = [f"Not listed in {NAME} but included: {', '.join(extra)}."] if extra else []
    if not expected and not run_folders:
        unknown = "so runs that never started are not known; run the sweep again to list them"
        log.warning("%s: no %s, %s", folder, NAME, unknown)
    return Sweep(folder, runs, missing, notes)


def planned(folder: Path, configs: Iterable[Config]) -> Sweep:
    """Return a sweep as its runs will record it, as far as their configs tell: without contents and results."""
    runs = []
    for number, config in enumerate(configs):
        model = {name: str(getattr(config.model, name)) for name in ("id", "backend", "quantization")}
        dtype = str(config.model.precision).replace("bf", "bfloat").replace("fp", "float")
        record = {"model": {**model, "dtype": dtype}, "data": {}, "seed": config.seed}
        names = config.model.name, config.data.name, config.data.rows or 0
        runs.append(SweepRun(str(number), folder, *names, record, _settings(config, record), asdict(config.seeds)))
    return Sweep(folder, runs, [], [])


def _folders_of_runs(folder: Path, named: Sequence[Path]) -> list[Path]:
    if named:
        found = list(dict.fromkeys(path.resolve() for path in named))
        if len({path.name for path in found}) < len(named):
            raise UserError(f"runs: {', '.join(path.name for path in found)} are not different runs; name each once")
        return found
    marks = ("run.json", "config.yaml", "checkpoints")
    return [path for path in sorted(folder.glob("*/")) if any((path / name).exists() for name in marks)]


def finished_tables(multirun: Path) -> dict[str, dict[str, Any]]:
    """Return the table.json of each sweep below a folder that can be read, by the sweep's name."""
    found = {}
    for path in sorted(multirun.glob("*/table.json")):
        with suppress(OSError, ValueError):
            table = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(table, dict):
                found[path.parent.name] = table
    return found


def _read_run(folder: Path) -> SweepRun:
    """Return a run; raises `AbsentError` unless it is completed and its scores and config are whole."""
    record, names = _read_record(folder / "run.json")
    for name, problem in score_problems(folder, record):
        if name.endswith(".jsonl"):
            raise AbsentError(f"{name} {problem}; {REPEAT}")
    try:
        config = config_of(folder, record)
    except DamageError as error:
        raise AbsentError(f"{error.path.name} {error.problem}; {REPEAT}") from None
    streams = asdict(config.seeds)
    return SweepRun(folder.name, folder, *names, record, _settings(config, record), streams, config.sweep.design)


def _read_record(path: Path) -> tuple[dict[str, Any], tuple[str, str, int]]:
    """Return a run.json, and its model, data and rows; raises `AbsentError` unless the run is completed and scored."""
    if not path.exists():
        raise AbsentError("interrupted before run.json was written")
    try:
        record = read_record(path.parent)
        if record["status"] != "completed":
            failed = f"failed: {record.get('error', 'no reason recorded')}"
            raise AbsentError(failed if record["status"] == "failed" else "running or interrupted")
        names = record["model"]["name"], record["data"]["name"], record["data"]["rows"]
        int(record["seed"])
        if "tuned" not in record["eval"]:
            raise AbsentError("completed without scores")
    except (DamageError, KeyError, TypeError, ValueError) as error:
        reason = error.problem if isinstance(error, DamageError) else f"is incomplete ({error!r})"
        log.warning("%s: %s, so the run is left out", path, reason)
        raise AbsentError(f"run.json {reason}; {REPEAT}") from error
    except UserError as error:  # of another schema, so its numbers may mean something else
        raise AbsentError(str(error)) from error
    return record, names


def _settings(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that can change the result, flat; for the model, the facts of the one that was loaded.

    With shortened fingerprints of the data that was read, and the `meaning` of the version that made the run.
    """
    groups = identity(config, {})
    for name in ("meaning", "inputs", "seeds"):
        del groups[name]
    groups["lora"].pop("enabled", None)
    del groups["model"]["precision"]  # `auto` means another precision on another machine
    found = {**_flat(groups), "lora": "adapter" if config.lora.enabled else "full"}
    for key in ("id", "revision", "backend", "quantization", "dtype"):
        found[f"model.{key}"] = record["model"].get(key)
    inputs = record.get("inputs") or {}
    for key in ("data.base", "data.pool"):
        if key in inputs:
            found[key] = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{12,}\b", r"\1", str(inputs[key]))
    return {**found, "meaning": record.get("meaning", "4 or older")}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings; lists become text."""
    return {key: str(value) if isinstance(value, list) else value for key, value in flatten(values, ".").items()}


def _missing(folder: Path, name: str, reason: str, cell: Mapping[str, Any]) -> Missing:
    """Describe a missing run by its config.yaml, else by its entry in sweep.json."""
    known: dict[str, Any] = {
        each.key_or_group: each.value() for each in parse(cell.get("overrides", []))
    }  # 2e-4 as 0.0002
    known = {key: str(value) if isinstance(value, list) else value for key, value in known.items()}
    known |= {key: cell[key] for key in ("model", "data", "seed") if key in cell}  # not a preset's name
    with suppress(Exception):  # the run may have ended before it wrote one
        written: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        known |= {**_flat(written), "model": written["model"]["name"], "data": written["data"]["name"]}
    full = known.get("lora") == "none" or str(known.get("lora.enabled")).lower() == "false"
    known["lora"] = "full" if full else "adapter"
    seed = str(known.get("seed"))
    return Missing(name, known.get("model"), known.get("data"), int(seed) if seed.isdigit() else None, known, reason)
