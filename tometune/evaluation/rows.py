"""Raw rows of a task and their fields, which prompts and references are made from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.config.data import SourceConfig, SourceKind
from tometune.config.eval import TaskConfig, TaskKind
from tometune.data.readers import Batch, batches
from tometune.data.sources import read

ROLES = ("system", "user", "assistant")
"""In a list of messages, a role selects the first message of that role."""


@dataclass(frozen=True)
class Row:
    """One raw row and its file and line, for error messages."""

    fields: dict[str, Any]
    origin: str


class UnknownFieldError(KeyError):
    """A path names a field that does not exist; holds the name and the existing fields."""

    def __init__(self, name: str, fields: list[str]) -> None:
        super().__init__(name)
        self.name = name
        self.fields = fields

    def message(self, where: str, origin: str) -> str:
        """Return the error as one line, for the config key `where` and the row `origin`."""
        near = did_you_mean(self.name, self.fields)
        return f"{where}: {origin} has no field {self.name!r}{near} (fields: {', '.join(self.fields)})"


def read_rows(key: str, task: TaskConfig) -> list[Row]:
    """Return the rows of a task in the order of its source.

    Args:
        key: full key of the task in the config, e.g. `eval.tasks.qa`.
        task: the task.

    Raises:
        UserError: the source is missing, broken or empty.
    """
    found: Iterable[Batch]
    match task.kind:
        case TaskKind.hub:
            found = read(SourceConfig(id=task.id, revision=task.revision, subset=task.subset, split=task.split), key)
        case TaskKind.jsonl:
            found = read(SourceConfig(kind=SourceKind.files, path=task.path), key)
        case TaskKind.pydocs:
            from tometune.data import pydocs

            found = batches(pydocs.examples(task.topic or ""), f"pydocs {task.topic}")
    rows = [Row(fields, batch.where(index)) for batch in found for index, fields in enumerate(batch.checked_rows())]
    if not rows:
        raise UserError(f"{key}: {task.path or task.id or task.topic} has no examples; choose a source that has some")
    return rows


def render(template: str, fields: dict[str, Any], where: str, origin: str) -> str:
    """Replace each `{field}` of a template by that field of the row; `{{` and `}}` are plain braces.

    A null value becomes empty, a list is joined by commas, and the result is stripped.

    Args:
        template: the text with its fields.
        fields: the row.
        where: key of the template in the config, e.g. `eval.tasks.qa.prompt`.
        origin: the row's file and line.

    Raises:
        UserError: the template is malformed or names a field that the row does not have.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}: {error}; write {{{{ and }}}} for plain braces") from None
    text = []
    for literal, name, spec, conversion in parts:
        text.append(literal)
        if name is None:
            continue
        if spec or conversion or not name:
            raise UserError(f"{where}: only plain fields are supported, no formats; e.g. {{input}}")
        try:
            text.append(", ".join(reach(fields, name)))
        except UnknownFieldError as error:
            raise UserError(error.message(where, origin)) from None
    return "".join(text).strip()


def collect(paths: list[str], fields: dict[str, Any], where: str, origin: str) -> list[str]:
    """Return the distinct, non-empty references of a row, in order.

    Raises:
        UserError: a path names no field, or all references are empty.
    """
    try:
        found = [text.strip() for path in paths for text in reach(fields, path)]
    except UnknownFieldError as error:
        raise UserError(error.message(where, origin)) from None
    references = list(dict.fromkeys(text for text in found if text))
    if not references:
        raise UserError(f"{where}: {origin} has no reference with any text; delete the row or name another field")
    return references


def reach(value: Any, path: str) -> Iterator[str]:
    """Yield every value at a dotted path as text; a list on the path contributes the values of each of its entries.

    In a list of `{role, content}` messages, a role selects the content of the first message of that role, as in
    `messages.assistant`.
    """
    head, _, rest = path.partition(".")
    if isinstance(value, list) and path:
        if head in ROLES and all(isinstance(entry, dict) and "role" in entry for entry in value):
            turns = [turn for turn in value if turn["role"] == head][:1]
            yield from reach([turn.get("content") for turn in turns], rest)
        else:
            for entry in value:
                yield from reach(entry, path)
    elif path:
        if not isinstance(value, dict) or head not in value:
            raise UnknownFieldError(head, list(value) if isinstance(value, dict) else [])
        yield from reach(value[head], rest)
    elif isinstance(value, list):
        for entry in value:
            yield from reach(entry, "")
    elif value is not None:
        yield str(value).encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot
