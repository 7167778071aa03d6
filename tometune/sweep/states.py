"""What became of the cells of a sweep: done, failed, elsewhere, broken off, not started; and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tometune.common.errors import UserError
from tometune.runs.lock import owner_of
from tometune.runs.run import read_record
from tometune.runs.sweep_file import Cell


class State(StrEnum):
    """Where a cell stands."""

    completed = "completed"
    elsewhere = "running elsewhere"
    failed = "failed"
    broken_off = "broken off"
    not_started = "not started"


@dataclass(frozen=True)
class Standing:
    """Where one cell stands, and why."""

    cell: Cell
    state: State
    reason: str = ""
    """In a few words; empty where there is nothing to say."""

    wrong_input: bool = False
    """Whether the user's input or config is why."""

    def line(self) -> str:
        """Return one line for the list of what is missing."""
        return f"  {self.cell.name}: {self.state}" + (f": {self.reason}" if self.reason else "")


def standing(folder: Path, cell: Cell) -> Standing:
    """Return where a cell stands by what is on the disk.

    Args:
        folder: of the sweep.
        cell: as it is listed.
    """
    wrong = cell.exit_status == 2
    if cell.run_id is None:
        return Standing(cell, State.failed, cell.error or "", wrong)
    run = folder / cell.run_id
    owner = owner_of(run)
    if owner is not None:
        return Standing(cell, State.elsewhere, str(owner))
    if not (run / "run.json").exists():
        return Standing(cell, State.failed if cell.error else State.not_started, cell.error or "", wrong)
    try:
        record = read_record(run)
    except UserError as error:
        return Standing(cell, State.failed, str(error), wrong_input=True)
    if record.get("status") == "completed":
        return Standing(cell, State.completed)
    if cell.error:  # an attempt that got no further than the record of an earlier one
        return Standing(cell, State.failed, cell.error, wrong)
    if record.get("status") == "failed":
        return Standing(cell, State.failed, str(record.get("error", "")))
    return Standing(cell, State.broken_off, f"attempt {record.get('attempts')} did not end; the same command goes on")


def missing(standings: Sequence[Standing]) -> list[Standing]:
    """Return those that are not done."""
    return [entry for entry in standings if entry.state is not State.completed]
