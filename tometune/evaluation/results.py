"""The stored scores of a task: one JSON line per example, and a file with their key, digest and means."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text

Examples = dict[str, dict[str, Any]]  # the lines of a file of scores, by example id
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


def read_scores(path: Path, fix: str = "repeat the command that scored it") -> Examples:
    """Return the lines of a `<task>.jsonl`; `fix` ends the errors.

    Raises:
        UserError: the file is missing or has no examples, or a line is broken; names the line.
    """
    found: Examples = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:  # not splitlines(): it also splits at U+2028
            for line in lines:
                row = json.loads(line)
                row["scores"] = {column: float(score) for column, score in dict(row["scores"]).items()}
                if found.setdefault(str(row["id"]), row) is not row:
                    raise ValueError(f"the id {row['id']} occurs twice")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, although the run is completed; {fix}") from None
    except KeyError as error:
        raise UserError(f"{path}:{len(found) + 1}: has no {error}; {fix}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}:{len(found) + 1}: not a line of scores ({error}); {fix}") from None
    if not found:
        raise UserError(f"{path}: no examples; {fix}")
    return found
