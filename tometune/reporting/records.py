"""The records in a sweep folder: each run's run.json, and sweep.json with the cells that should be there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.runs.run import SCHEMA

EXPECTED = "sweep.json"
"""Names the cells that should be there: `{"schema": 1, "cells": [{"run_id", "overrides", "error"}]}`."""

AGAIN = "delete it and start the sweep again, the run goes on from its checkpoint"
"""What to do about a run.json that cannot be read."""


def is_run(path: Path) -> bool:
    """Whether a folder was made by a run."""
    return any((path / name).exists() for name in ("run.json", "config.yaml", "checkpoints"))


def expected_cells(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return each cell that should be there by its run id; one with a wrong config has none and goes by its overrides.

    Empty without a list.

    Raises:
        UserError: the list is broken, or of another version.
    """
    path = folder / EXPECTED
    if not path.exists():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        if listed["schema"] != 1:
            raise UserError(f"{path}: of schema {listed['schema']}, not 1; it was written by another version")
        return {cell["run_id"] or " ".join(cell["overrides"]): cell for cell in listed["cells"]}
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a list of cells ({problem}); delete it and start the sweep again") from None


def read_record(folder: Path) -> dict[str, Any] | str:
    """Return what run.json says, or why it says nothing."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "broken off before its run.json was written"
    except ValueError as error:
        return f"run.json is broken ({error}); {AGAIN}"
    return record if isinstance(record, dict) else f"run.json is broken (not an object); {AGAIN}"


def check_schemas(folder: Path, records: Mapping[Path, dict[str, Any] | str]) -> None:
    """Refuse runs that another version wrote: their numbers may mean something else."""
    by_schema: dict[Any, list[str]] = {}
    for path, record in records.items():
        if not isinstance(record, str):
            by_schema.setdefault(record.get("schema"), []).append(path.name)
    foreign = {schema: names for schema, names in by_schema.items() if schema != SCHEMA}
    if foreign:
        told = "; ".join(f"schema {schema}: {', '.join(names)}" for schema, names in foreign.items())
        raise UserError(
            f"{folder}: run.json of another version than this one's (schema {SCHEMA}): {told}; "
            "move these runs away and make them again"
        )


def reason_missing(record: Mapping[str, Any]) -> str | None:
    """Return why a run is not completed, or None if it is."""
    status = record.get("status")
    if status == "failed":
        return f"failed: {record.get('error', 'no reason recorded')}"
    if status != "completed":
        return "running, or broken off" if status == "running" else f"status {status}"
    lacking = [name for name in ("model", "data", "seed", "eval") if name not in record]
    if lacking:
        return f"run.json has no {', '.join(lacking)}"
    return None if "tuned" in record["eval"] else "completed without scores"
