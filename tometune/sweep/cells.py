"""The cells of a command, and how they are added to sweep.json.

Several commands can fill one sweep, so each adds its cells to those listed. A cell with the same overrides is the same
cell: if its config means another run now (a YAML, an input or the version changed), the new run replaces the old entry,
whose folder stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_json
from tometune.config.jobs import Job
from tometune.config.root import Config
from tometune.runs.inputs import fingerprints
from tometune.runs.run import name_of, runs_folder
from tometune.runs.sweep_file import NAME, SCHEMA, Cell, read_cells

LOCK = ".sweep.lock"


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
