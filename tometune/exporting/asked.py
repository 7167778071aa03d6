"""The exports that are asked for, and what was found of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tometune.runs.finished import Finished

SCHEMA = 2
"""Version of gate.json's layout, and of what an export holds."""


@dataclass(frozen=True)
class Export:
    """One export that is asked for."""

    format: str
    quant: str | None
    folder: Path

    @property
    def name(self) -> str:
        """`adapter`, `merged_16bit`, `gguf-q8_0`."""
        return self.folder.name

    @property
    def kind(self) -> str:
        """What its limits go by: the format, or the quant of a GGUF."""
        return self.quant or self.format


def asked_for(formats: Sequence[str], quants: Sequence[str], folder: Path) -> list[Export]:
    """Return the exports of these formats, a GGUF a quant, in the order in which one needs the other."""
    found = []
    for kind in ("adapter", "merged_16bit", "gguf"):
        if kind in formats:
            for quant in quants if kind == "gguf" else [None]:
                found.append(Export(kind, quant, folder / (f"gguf-{quant}" if quant else kind)))
    return found


def read_gate(folder: Path) -> dict[str, Any] | None:
    """Return an export's gate.json; None where there is none, or a broken one."""
    try:
        found: dict[str, Any] = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("schema") == SCHEMA else None


def parameters_of(finished: Finished) -> int:
    """Return the number of the base's weights, as the run counted them."""
    return int(finished.record["model"]["parameters"])
