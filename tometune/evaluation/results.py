"""The stored scores of a task: one JSON line per example, and a file with their key, digest and means."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.files import write_json, write_text

TaskScores = dict[str, Any]  # `means` (plain mean of each column), counts and costs of one task


def write_result(path: Path, key: dict[str, Any], lines: Sequence[str], result: TaskScores) -> None:
    """Write `<task>.jsonl`, then `<task>.json` with its digest; without the second file the first is ignored.

    `key` holds everything that the scores depend on, `lines` one JSON object per example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    write_text(path, text)
    write_json(path.with_suffix(".json"), {"key": key, "sha256": sha256(text.encode()).hexdigest(), **result})


def read_result(path: Path, key: dict[str, Any]) -> TaskScores | None:
    """Return the stored result of a task; None if it is missing, broken or unreadable, or was made with another key."""
    try:
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        digest = sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("key", None) != key or stored.pop("sha256", None) != digest:
        return None
    return stored
