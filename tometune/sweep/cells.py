"""Cells: the runs of a sweep, listed in `sweep.json` before the first of them starts.

`{"schema": 1, "cells": [{"run_id", "overrides", "model", "data", "rows", "seed"}, …]}`, and `error` in a cell that
ended before it had a run.json. Several commands can fill one sweep, so each adds its cells to those listed. A cell with
the same overrides is the same cell: if its config means another run now (a YAML, an input or the version changed), the
new run takes the place of the old one, whose folder stays.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_json
from tometune.config.jobs import Job
from tometune.config.root import Config
from tometune.runs.inputs import fingerprints
from tometune.runs.run import name_of, runs_folder

NAME = "sweep.json"
LOCK = ".sweep.lock"

SCHEMA = 1
"""Version of sweep.json's layout."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, made or to be made."""

    run_id: str | None
    """None where the config does not say which run it is: a value or an input is wrong, and `error` says how."""

    overrides: list[str]
    """What the command line and the sweep's preset set for it."""

    model: str
    data: str
    rows: int
    seed: int
    error: str | None = None
    """Why its last attempt ended without a run.json, in one line."""

    exit_status: int | None = None
    """The exit status that goes with the error."""

    def listed(self) -> dict[str, Any]:
        """Return what sweep.json says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "run_id"}


def cell_of(config: Config, overrides: Sequence[str], problem: str | None = None) -> Cell:
    """Return the cell of a config; loads nothing and writes nothing."""
    run_id, error = None, problem
    if error is None:
        try:
            run_id, _ = name_of(config, fingerprints(config))
        except UserError as found:
            error = " ".join(str(found).split("\n"))
    status = None if error is None else 2
    where = config.model.name, config.data.name, config.data.rows, config.seed
    return Cell(run_id, list(overrides), *where, error, status)


def cells_of(jobs: Iterable[Job]) -> dict[Path, list[Cell]]:
    """Return the cells of a command by the folder of their sweep (one, unless its name is what differs)."""
    found: dict[Path, list[Cell]] = {}
    for job in jobs:
        cell = cell_of(job.config, job.overrides, " ".join(job.problems) or None)
        found.setdefault(runs_folder(job.config), []).append(cell)
    return found


def list_cells(folder: Path, cells: Sequence[Cell]) -> None:
    """Add cells to the sweep's list; an error of an earlier attempt is forgotten unless the cell brings one.

    Raises:
        UserError: sweep.json is broken, or the folder cannot be written to.
    """
    with disk_errors(folder, "paths.multirun"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            listed = read_cells(folder)
            merged = _merged(listed, cells)
            if merged != listed or not (folder / NAME).exists():
                content = {"schema": SCHEMA, "cells": [cell.listed() for cell in merged]}
                write_json(folder / NAME, content)


def note_error(folder: Path, cell: Cell, error: str, exit_status: int) -> None:
    """Keep the reason why a cell ended before it had a record of its own."""
    list_cells(folder, [replace(cell, error=error, exit_status=exit_status)])


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells that sweep.json lists; none where there is no such file.

    Raises:
        UserError: it is broken, or of another version.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, not {SCHEMA}")
        return [Cell(**_known(entry)) for entry in content["cells"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of runs ({error}); delete it, the next command writes it again") from error


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a later version may have added."""
    return {name: value for name, value in entry.items() if name in Cell.__dataclass_fields__}


def _merged(listed: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
    """Put each cell in its place, or at the end; each run is listed once."""
    merged = {tuple(cell.overrides): cell for cell in listed}
    for cell in cells:
        same = next((key for key, old in merged.items() if cell.run_id and old.run_id == cell.run_id), None)
        key = tuple(cell.overrides) if tuple(cell.overrides) in merged else same or tuple(cell.overrides)
        merged[key] = replace(cell, overrides=list(key))
    runs: dict[str | tuple[str, ...], Cell] = {}
    for key, cell in merged.items():
        runs.setdefault(cell.run_id or key, cell)
    return list(runs.values())
