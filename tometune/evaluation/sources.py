"""Raw rows of a task: a hub dataset, files, or the embedded documentation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tometune.common.errors import UserError
from tometune.common.hub import pinned
from tometune.config.data import SourceConfig, SourceKind
from tometune.config.eval import TaskConfig, TaskKind
from tometune.data.readers import Batch, batches
from tometune.data.sources import content_digest, files_of, read


@dataclass(frozen=True)
class Row:
    """One raw row and where it came from, for error messages."""

    fields: dict[str, Any]
    origin: str


def fingerprint(task: TaskConfig, key: str) -> str:
    """Return what identifies the rows of a task, without loading them or importing a heavy library.

    Raises:
        UserError: a file is missing.
    """
    match task.kind:
        case TaskKind.hub:
            return f"{task.id}@{pinned(f'{key}.id', str(task.id), task.revision, 'dataset')}"
        case TaskKind.jsonl:
            return "-".join(sorted(content_digest(file).hex() for file in files_of(task.path, f"{key}.path")))
        case TaskKind.pydocs:
            from tometune.data import pydocs

            return f"{pydocs.fingerprint()}/{task.topic}"


def read_rows(key: str, task: TaskConfig) -> list[Row]:
    """Return the rows of a task in their own order.

    Args:
        key: full key of the task in the config, e.g. `eval.tasks.qa`.
        task: the task.

    Raises:
        UserError: the source is missing, broken or empty.
    """
    rows = [Row(fields, batch.where(index)) for batch in _batches(key, task) for index, fields in enumerate(batch.rows)]
    if not rows:
        raise UserError(f"{key}: {task.path or task.id or task.topic} has no examples; give a source that has some")
    return rows


def _batches(key: str, task: TaskConfig) -> Iterable[Batch]:
    """Read the source that the task names."""
    match task.kind:
        case TaskKind.hub:
            hub = SourceConfig(id=task.id, revision=task.revision, subset=task.subset, split=task.split)
            return read(hub, key)
        case TaskKind.jsonl:
            return read(SourceConfig(kind=SourceKind.files, path=task.path), key)
        case TaskKind.pydocs:
            from tometune.data import pydocs

            return batches(pydocs.examples(task.topic or ""), f"pydocs {task.topic}")
