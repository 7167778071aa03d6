"""A plan shown, kept, and held against what its runs took."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.runs.run import read_record
from tometune.sweep.plan import PlannedRun

NAME = "plan.json"
SCHEMA = 1


def show(runs: Sequence[PlannedRun], problems: Sequence[str], console: Console | None = None) -> None:
    """Print the plan, and what keeps other runs of the command from being made."""
    console = console or Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("rows", "tokens", "steps", "answers", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        counts = (f"{count:,}" for count in (run.rows, run.tokens, run.steps, run.examples))
        table.add_row(run.run_id, *counts, "done" if run.done else duration(run.seconds))
    console.print(table)
    left = [run for run in runs if not run.done]
    console.print(f"{len(runs)} runs, {len(runs) - len(left)} done; {len(left)} to make:", markup=False)
    console.print(
        f"  {sum(run.tokens for run in left):,} tokens, {sum(run.steps for run in left):,} steps", markup=False
    )
    known = [run for run in left if run.seconds is not None]
    if len(known) < len(left):
        console.print(
            f"  time, memory and disk of {len(left) - len(known)}: unknown, no run of their kind was made here"
        )
    if known:
        memory, disk = max(run.memory or 0.0 for run in known), sum(run.disk or 0.0 for run in known)
        total = sum(run.seconds or 0.0 for run in known)
        console.print(
            f"  {duration(total)} one after the other, memory {memory / 1e9:.1f} GB, disk {disk / 1e9:.2f} GB"
        )
    for problem in problems:
        console.print(f"  cannot be made: {problem}", markup=False)


def duration(seconds: float | None) -> str:
    """Return a time in words.

    >>> duration(42.4), duration(600), duration(20_000), duration(None)
    ('42 s', '10 min', '5.6 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def keep(folder: Path, runs: Sequence[PlannedRun]) -> None:
    """Write the plan into the sweep's folder, to be compared with what the runs took."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, {"schema": SCHEMA, "runs": [asdict(run) for run in runs]})


def compare(folder: Path, started: float, seconds: float) -> None:
    """Say on stderr how far off the plan was, if there was one for every run that was made since.

    Args:
        folder: of the sweep.
        started: when the command began, in seconds since 1970.
        seconds: what it took.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        planned: dict[str, Any] = {run["run_id"]: run["seconds"] for run in content["runs"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    made = []
    for path in folder.glob("*/run.json"):
        try:
            record = read_record(path.parent)
        except UserError:
            continue
        begun = datetime.fromisoformat(record["started"]).timestamp()
        if record["status"] == "completed" and begun >= math.floor(started):
            made.append(record["run_id"])
    foretold = [planned[run_id] for run_id in made if planned.get(run_id) is not None]
    if not made or len(foretold) < len(made):
        return
    total = sum(foretold)
    off = seconds / total - 1
    print(
        f"planned {duration(total)} for {len(made)} runs, took {duration(seconds)}: {abs(off):.0%} "
        f"{'more' if off > 0 else 'less'}",
        file=sys.stderr,
    )
