"""What an export consists of: name, size and sha256 of each file, as they were when its gate passed."""

from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

GATE = "gate.json"
"""Names the others, so it cannot name itself."""


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of each file of an export but gate.json."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / GATE)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
    }


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def changed(folder: Path, gate: Mapping[str, Any]) -> list[str]:
    """Return the files of an export that are gone, new, or not what they were when its gate passed; sizes first."""
    then: Mapping[str, Mapping[str, Any]] = gate["files"]
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    there.pop(GATE, None)
    wrong = sorted({*then} ^ {*there}) + [
        name for name in {*then} & {*there} if there[name].stat().st_size != then[name]["size"]
    ]
    return wrong or sorted(name for name, path in there.items() if sha256_of(path) != then[name]["sha256"])
