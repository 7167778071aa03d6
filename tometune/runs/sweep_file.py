"""sweep.json: the cells of a sweep, listed before the first run starts.

`{"schema": 1, "question": {"primary", "margin"}, "cells": [{"run_id", "overrides", "model", "data", "rows", "seed"},
…]}`. The question is the one asked before the first run started; files of older versions have none. A cell whose
attempt ended before run.json was written also has an `error`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.integrity import defect
from tometune.runs.run import DamageError

NAME = "sweep.json"
SCHEMA = 1  # version of the file's layout


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, finished or not."""

    run_id: str | None  # None if a value or an input is wrong, see `error`
    overrides: list[str]  # from the command line and the sweep's preset
    model: str | None = None
    data: str | None = None
    rows: int | None = None
    seed: int | None = None
    error: str | None = None  # why its last attempt ended without a run.json, in one line
    exit_status: int | None = None  # belongs to the error

    @property
    def name(self) -> str:
        """The run id, or the overrides of a cell that has none."""
        return self.run_id or " ".join(self.overrides)

    def listed(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None or name == "run_id"}


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells that a folder's sweep.json lists; an empty list if the file is missing.

    Raises:
        DamageError: it is broken; the next command of the sweep writes it again.
        UserError: it has another schema.
    """
    return read_sweep_file(folder)[0]


def read_sweep_file(folder: Path) -> tuple[list[Cell], dict[str, Any] | None]:
    """Return the cells and the question, None if it was not recorded; raises like `read_cells`."""
    path = folder / NAME
    if (problem := defect(path)) == "is missing":
        return [], None
    try:
        if problem is not None:
            raise ValueError(problem)
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UserError(f"{path}: not of schema {SCHEMA}, so another version of tometune wrote it; move it away")
        question = content.get("question")
        if question is not None:
            question = {"primary": [str(text) for text in question["primary"]], "margin": question["margin"]}
        fields = Cell.__dataclass_fields__  # a later version may have added others
        cells = [Cell(**{name: entry[name] for name in entry if name in fields}) for entry in content["cells"]]
        return cells, question
    except (ValueError, KeyError, TypeError) as error:
        reason = problem or f"is not a list of runs ({type(error).__name__}: {error})"
        raise DamageError(path, reason, "run the sweep again, which writes it again") from error
