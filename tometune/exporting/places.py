"""Where exports lie: only an export ever gives way to one, and a kill at any moment loses none that was whole."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import disk_errors
from tometune.exporting.asked import Export
from tometune.runs.finished import Finished

NEW, OLD, FAILED = ".tometune-new-", ".tometune-old-", "-failed"
"""What a folder is called while it is made, while the next one takes its place, and beside one that passed."""


def check_places(finished: Finished, folder: Path, wanted: Sequence[Export]) -> None:
    """Check that nothing but earlier exports of this run lies where the exports go.

    Raises:
        UserError: something else does, which would be lost.
    """
    inside, own = folder.resolve(), finished.folder.resolve()
    if (inside == own or own in inside.parents) and own / "export" not in (inside, *inside.parents):
        raise UserError(
            f"export.folder={folder}: inside the run, beside what training left; leave it out ({own / 'export'})"
        )
    for export in wanted:
        for target in (export.folder, beside(export.folder)):
            check_place(target, str(finished.record["run_id"]))


def check_place(target: Path, run_id: str) -> None:
    """Check that a folder is not there, is empty, or holds an export of the run."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not target.is_symlink():
        gate = _gate(target)
        whose = gate and gate["run_id"]
        if whose == run_id or not any(target.iterdir()):
            return
        holds = f"holds an export of another run, {whose}" if whose else "holds no gate.json, so is no export"
    else:
        holds = "is no folder of exports"
    raise UserError(f"{target}: {holds}, and would be overwritten; move it away or set export.folder")


def _gate(folder: Path) -> dict[str, Any] | None:
    """Return an export's gate.json, of whatever version; None where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
        return found if {"run_id", "format", "passed"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def beside(target: Path) -> Path:
    """Return where an export goes that failed while one that passed is in its place."""
    return target.with_name(target.name + FAILED)


def recover(target: Path) -> None:
    """Put back an export that a kill left aside, and remove what was never finished."""
    old, new = target.with_name(OLD + target.name), target.with_name(NEW + target.name)
    if old.exists() and not target.exists():
        old.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside the target; `settle` gives it its place, without that it is gone afterwards."""
    recover(target)
    recover(beside(target))
    new = target.with_name(NEW + target.name)
    try:
        with disk_errors(target.parent):
            new.mkdir(parents=True)
            yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def settle(new: Path, target: Path, gate: Mapping[str, Any]) -> Path:
    """Put a whole export into its place and return that: beside one that passed if it failed itself.

    What is there is renamed first, and deleted once the new one has its name.

    Raises:
        UserError: what is there now is no export of the run.
    """
    before = _gate(target)
    place = beside(target) if before and before["passed"] and not gate["passed"] else target
    check_place(place, gate["run_id"])
    old = place.with_name(OLD + place.name)
    if place.exists():
        place.replace(old)
    new.replace(place)
    shutil.rmtree(old, ignore_errors=True)
    if gate["passed"] and _gate(beside(target)):
        shutil.rmtree(beside(target), ignore_errors=True)
    return place
