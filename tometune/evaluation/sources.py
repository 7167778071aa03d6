"""Raw rows of a task: a hub dataset, a JSONL file, or the documentation of this Python."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.config.errors import UserError
from tometune.config.eval import TaskConfig, TaskKind
from tometune.hub import commit_of, hub_errors, pinned


@dataclass(frozen=True)
class Row:
    """One raw row and where it came from, for error messages."""

    fields: dict[str, Any]
    origin: str


def fingerprint(task: TaskConfig, key: str) -> str:
    """Return what identifies the rows of a task, without loading them or importing a heavy library.

    Raises:
        UserError: the file is missing.
    """
    match task.kind:
        case TaskKind.hub:
            return f"{task.id}@{pinned(f'{key}.id', str(task.id), task.revision, 'dataset')}"
        case TaskKind.jsonl:
            return sha256(_content(f"{key}.path", task.path)).hexdigest()
        case TaskKind.pydocs:
            from tometune.data import pydocs

            return f"{pydocs.fingerprint()}/{task.topic}"


def read_rows(key: str, task: TaskConfig, cache: Path) -> list[Row]:
    """Return the rows of a task in their own order.

    Args:
        key: full key of the task in the config, e.g. `eval.tasks.qa`.
        task: the task.
        cache: the cache folder; hub rows are kept in `<cache>/datasets`.

    Raises:
        UserError: the source is missing, broken or empty.
    """
    match task.kind:
        case TaskKind.hub:
            rows = _read_hub(key, task, cache)
        case TaskKind.jsonl:
            rows = _read_jsonl(f"{key}.path", task.path)
        case TaskKind.pydocs:
            from tometune.data import pydocs

            examples = pydocs.examples(task.topic or "")
            rows = [Row(fields, f"pydocs {task.topic} example {number}") for number, fields in enumerate(examples)]
    if not rows:
        raise UserError(f"{key}: {task.path or task.id or task.topic} has no examples; give a source that has some")
    return rows


def _read_hub(key: str, task: TaskConfig, cache: Path) -> list[Row]:
    """Load one split of a hub dataset at its pinned revision."""
    from datasets import load_dataset

    folder = str(cache / "datasets")
    commit = commit_of(f"{key}.id", str(task.id), task.revision, "dataset")
    with hub_errors(f"{key}.id", str(task.id)):
        try:
            rows = load_dataset(task.id, task.subset, split=task.split, revision=commit, cache_dir=folder)
        except (ValueError, RuntimeError) as error:  # unknown split or subset; a dataset that needs a script
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{key}.id={task.id}: {reason}; check {key}.subset and {key}.split") from error
    return [Row(dict(row), f"{task.id} {task.split} row {number}") for number, row in enumerate(rows)]


def _content(key: str, path: str | None) -> bytes:
    """Return the bytes of a file."""
    wanted = "give the path of a JSONL file of {input, references}"
    try:
        return Path(path or "").expanduser().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key}={path}: no such file; {wanted}") from None
    except IsADirectoryError:
        raise UserError(f"{key}={path}: a folder, not a file; {wanted}") from None
    except (OSError, RuntimeError) as error:  # not allowed, too long a name, no such home
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={path}: cannot be read ({reason}); {wanted}") from None


def _read_jsonl(key: str, path: str | None) -> list[Row]:
    """Read one JSON object a line; blank lines are skipped."""
    rows = []
    for number, line in enumerate(_content(key, path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); write one object a line") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path}:{number}: a {type(fields).__name__}, not an object; write {{input, references}}")
        rows.append(Row(fields, f"{path}:{number}"))
    return rows
