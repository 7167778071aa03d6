"""The cells of a command: their entries in sweep.json, and the state of each (finished, failed, not started, …).

Several commands can fill one sweep, so each adds its cells to those listed. A cell with the same overrides is the same
cell: if its config means another run now (a YAML, an input or the version changed), the new run replaces the old entry,
whose folder stays. Cells with an invalid config are found in `config/sweep_cells.py`, which gives their problems.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from tometune.common.errors import UserError, one_line
from tometune.common.files import disk_errors, write_json
from tometune.config.report import ReportConfig, entries
from tometune.config.root import Config
from tometune.config.sweep_cells import Job
from tometune.runs.finished import damage
from tometune.runs.inputs import fingerprints
from tometune.runs.lock import owner_of
from tometune.runs.run import DamageError, name_of, read_record, runs_folder
from tometune.runs.sweep_file import NAME, SCHEMA, Cell, read_sweep_file

log = logging.getLogger(__name__)

AGAIN = "run the same command again to resume"


class State(StrEnum):
    """The state of a cell."""

    completed = "completed"
    elsewhere = "running elsewhere"
    failed = "failed"
    interrupted = "interrupted"
    not_started = "not started"


@dataclass(frozen=True)
class Status:
    """The state of one cell, the reason for it, and whether that reason is wrong input or config of the user."""

    cell: Cell
    state: State
    reason: str = ""
    wrong_input: bool = False

    def __str__(self) -> str:
        return f"  {self.cell.name}: {self.state}" + (f": {self.reason}" if self.reason else "")


def cell_of(config: Config, overrides: Sequence[str], problem: str | None = None) -> Cell:
    """Return the cell of a config; loads nothing and writes nothing."""
    run_id, error = None, problem
    if error is None:
        try:
            run_id, _ = name_of(config, fingerprints(config))
        except UserError as found:
            error = one_line(found)
    status = None if error is None else 2
    return Cell(
        run_id, list(overrides), config.model.name, config.data.name, config.data.rows, config.seed, error, status
    )


def cells_of(jobs: Iterable[Job]) -> dict[Path, list[Cell]]:
    """Return the cells of a command by sweep folder (several only if the command varies `sweep.name`)."""
    found: dict[Path, list[Cell]] = {}
    for job in jobs:
        cell = cell_of(job.config, job.overrides, " ".join(job.problems) or None)
        found.setdefault(runs_folder(job.config), []).append(cell)
    return found


def list_cells(
    folder: Path, cells: Sequence[Cell], all_of_command: bool = False, question: ReportConfig | None = None
) -> None:
    """Add cells to sweep.json; the error of an earlier attempt is removed unless the cell has a new one.

    With `all_of_command`, `cells` are all cells of a command. Listed cells without a run id (a value or an input was
    wrong) are then removed first, because this command line may be the corrected one. The `question` is recorded unless
    a run has started.

    Raises:
        UserError: sweep.json has another schema, or the folder cannot be written to.
    """
    with disk_errors(folder, "paths.multirun"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".sweep.lock"):
            try:
                listed, recorded = read_sweep_file(folder)
            except DamageError as error:
                log.warning("%s %s; written again, without the runs of other commands", error.path, error.problem)
                listed, recorded = [], None
            kept = [cell for cell in listed if cell.run_id or not all_of_command]
            merged = _merged(kept, cells)
            asked = recorded
            if question is not None and not any(folder.glob("*/config.yaml")):
                asked = {"primary": entries(question.primary), "margin": question.margin}
            if (merged, asked) != (listed, recorded) or not (folder / NAME).exists():
                entry = {} if asked is None else {"question": asked}
                write_json(folder / NAME, {"schema": SCHEMA, **entry, "cells": [cell.listed() for cell in merged]})


def _merged(listed: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
    """Replace cells that are listed already, append the others, and list each run once."""
    merged = {tuple(cell.overrides): cell for cell in listed}
    for cell in cells:
        key = tuple(cell.overrides)
        if key not in merged and cell.run_id:  # the same run may be listed with other overrides
            key = next((other for other, old in merged.items() if old.run_id == cell.run_id), key)
        merged[key] = replace(cell, overrides=list(key))
    runs: dict[str | tuple[str, ...], Cell] = {}
    for key, cell in merged.items():
        runs.setdefault(cell.run_id or key, cell)
    return list(runs.values())


def status_of(folder: Path, cell: Cell) -> Status:
    """Return the status of a cell by the files in its sweep's folder."""
    wrong = cell.exit_status == 2
    if cell.run_id is None:
        return Status(cell, State.failed, cell.error or "", wrong)
    run = folder / cell.run_id
    owner = owner_of(run)
    if owner is not None:
        return Status(cell, State.elsewhere, str(owner))
    if not (run / "run.json").exists():
        return Status(cell, State.failed if cell.error else State.not_started, cell.error or "", wrong)
    try:
        record = read_record(run)
    except DamageError as error:
        return Status(cell, State.interrupted, f"{error.path.name} {error.problem}; {AGAIN}")
    except UserError as error:
        return Status(cell, State.failed, str(error), wrong_input=True)
    if record.get("status") == "completed":
        damaged = [f"{name} {problem}" for name, problem in damage(run, record).items()]
        return Status(cell, State.interrupted, f"{damaged[0]}; {AGAIN}") if damaged else Status(cell, State.completed)
    if cell.error:  # the last attempt failed before it could update the record of an earlier one
        return Status(cell, State.failed, cell.error, wrong)
    if record.get("status") == "failed":
        return Status(cell, State.failed, str(record.get("error", "")))
    return Status(cell, State.interrupted, f"in attempt {record.get('attempts')}; {AGAIN}")
