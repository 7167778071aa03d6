"""Folders of exports: their files and hashes, disk space, and how a new export replaces an older one."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.runs.finished import Finished

GATE = "gate.json"
"""The record of an export, which lists its other files."""

OLD = ".tometune-old-"
"""Put before a folder's name while it is replaced."""

BITS = {"f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q3_k_m": 4.0}
"""Approximate bits per weight of a GGUF; small models keep more tensors at higher precision."""


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of each file of an export except gate.json."""
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in _files(folder).items()}


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / GATE)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def changed(folder: Path, gate: Mapping[str, Any]) -> list[str]:
    """Return the files of an export that were added, removed or changed since its gate; sizes are compared first."""
    then, now = gate["files"], _files(folder)
    different = sorted(then.keys() ^ now.keys())
    different += [name for name in then.keys() & now.keys() if now[name].stat().st_size != then[name]["size"]]
    return different or sorted(name for name, path in now.items() if sha256_of(path) != then[name]["sha256"])


def read_gate(folder: Path) -> dict[str, Any] | None:
    """Return an export's gate.json, of whatever version; None if the folder has none."""
    try:
        gate: dict[str, Any] = json.loads((folder / GATE).read_text(encoding="utf-8"))
        return gate if {"run_id", "format", "passed"} <= gate.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def check_space(finished: Finished, folder: Path, wanted: Sequence[tuple[str, str | None]]) -> None:
    """Raise a `UserError` unless a folder can be written and has space for exports, given as (format, quant)."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest}: is a file, so {folder} cannot be created; set export.folder to a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: not writable; set export.folder to a folder that is")
    quants = [quant for _, quant in wanted if quant is not None]
    bits = sum(BITS[quant] for quant in quants) + (16 if quants else 0)  # with the file that is quantised
    bits += 16 if quants or ("merged_16bit", None) in wanted else 0  # an adapter is small
    needed, free = 1.15 * bits / 8 * finished.record["model"]["parameters"], shutil.disk_usage(nearest).free
    if free < needed:
        raise UserError(
            f"{folder}: the exports need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free space, or "
            "set export.folder to another disk"
        )


def check_folders(finished: Finished, folder: Path, targets: Sequence[Path]) -> None:
    """Raise a `UserError` if exports would replace anything but earlier exports of this run."""
    inside, own = folder.resolve(), finished.folder.resolve()
    if (inside == own or own in inside.parents) and own / "export" not in (inside, *inside.parents):
        raise UserError(f"export.folder={folder}: inside the run, among its own files; leave it out ({own / 'export'})")
    for target in targets:
        check_folder(target, str(finished.record["run_id"]))
        check_folder(failed(target), str(finished.record["run_id"]))


def check_folder(target: Path, run_id: str) -> None:
    """Raise a `UserError` unless a folder does not exist, is empty, or holds an export of the run."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        why = "is not a folder"
    elif gate := read_gate(target):
        if gate["run_id"] == run_id:
            return
        why = f"holds an export of another run, {gate['run_id']}"
    elif not target.exists() or not any(target.iterdir()):
        return
    else:
        why = "is not an export (no gate.json)"
    raise UserError(f"{target}: {why}, and would be overwritten; move it away or set export.folder")


def failed(target: Path) -> Path:
    """Return where a failed export goes if a passing one exists."""
    return target.with_name(target.name + "-failed")


def recover(target: Path) -> None:
    """Restore an export, passing or failed, whose replacement was interrupted."""
    for path in (target, failed(target)):
        old = path.with_name(OLD + path.name)
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)


def move_to(target: Path, new: Path, gate: Mapping[str, Any]) -> Path:
    """Move a finished export to its folder and return that. A failed one goes to NAME-failed if a passing one exists.

    The existing folder is renamed first and deleted last, so a kill at any moment loses no complete export.

    Raises:
        UserError: the target is not an export of the run.
    """
    existing = read_gate(target)
    place = failed(target) if existing and existing["passed"] and not gate["passed"] else target
    check_folder(place, gate["run_id"])
    old = place.with_name(OLD + place.name)
    if place.exists():
        place.replace(old)
    new.replace(place)
    shutil.rmtree(old, ignore_errors=True)
    if gate["passed"] and read_gate(failed(target)):
        shutil.rmtree(failed(target), ignore_errors=True)
    return place
