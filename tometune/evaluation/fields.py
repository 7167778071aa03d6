"""Texts from the fields of an evaluation row: templates with `{field}`, and paths such as `messages.assistant`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.config.eval import TaskConfig
from tometune.data.formats import ANSWERING, ASKING
from tometune.data.turns import is_parts

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One raw row of a source."""

    fields: dict[str, Any]
    origin: str  # its file and line, for error messages


def names_in(task: TaskConfig) -> set[str]:
    """Return the fields that a task reads; without a system template of its own, also a row's `system`."""
    templates = (task.prompt, task.system or "{system}")
    paths = [*task.references, *(path for text in templates for _, path, _, _ in Formatter().parse(text) if path)]
    return {path.partition(".")[0] for path in [*paths, *([task.cluster] if task.cluster else [])]}


def render(template: str, row: Row, key: str) -> tuple[str, list[str]]:
    """Replace each `{field}` of a template by that field of the row; `{{` and `}}` are plain braces.

    `key` is the template's in the config, for errors. A null value is empty, a list is joined by commas.

    Returns:
        The text without outer white space, and the values in it.

    Raises:
        UserError: the template is malformed or names a field that the row does not have.
    """
    text, values = "", []
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            text += literal
            if spec or conversion or name == "":
                raise ValueError("only plain fields are supported, no formats; e.g. {input}")
            if name:
                values.append(", ".join(reach(row.fields, name, f"{key}: {row.origin}")))
                text += values[-1]
    except ValueError as error:
        raise UserError(f"{key}: {error} (write {{{{ and }}}} for plain braces)") from None
    return text.strip(), values


def collect(paths: list[str], row: Row, key: str) -> list[str]:
    """Return the distinct, non-empty references of a row, in order.

    Raises:
        UserError: a path names no field, or one that is not text.
    """
    found = (text.strip() for path in paths for text in reach(row.fields, path, f"{key}: {row.origin}"))
    return list(dict.fromkeys(text for text in found if text))


def reach(value: Any, path: str, place: str, name: str = "") -> Iterator[str]:
    """Yield every value at a dotted path as text; a list on the path contributes the values of each of its entries.

    In a list of `{role, content}` messages, a role selects the content of the first message of that role, as in
    `messages.assistant`. A list of text parts is one text. `value` is the row, or what the path has led to, and `path`
    what is left of it. `place` (config key and row) and `name` (the last field on the path) are for errors.

    Raises:
        UserError: the path names no field, or leads to an object or to NaN.
    """
    head, _, rest = path.partition(".")
    if value and is_parts(value) and all(part["type"] == "text" for part in value):
        yield from reach("".join(str(part.get("text", "")) for part in value), path, place, name)
    elif isinstance(value, list):
        if head in ROLES and all(isinstance(entry, dict) and "role" in entry for entry in value):
            turns = [turn for turn in value if str(turn["role"]).lower() == head]
            value, path, name = [turn.get("content") for turn in turns[:1]], rest, head
        for entry in value:
            yield from reach(entry, path, place, name)
    elif path:
        if not isinstance(value, dict) or head not in value:
            raise _unknown(head, value, place)
        yield from reach(value[head], rest, place, head)
    elif isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        kind = f"an object with the fields {', '.join(value)}" if isinstance(value, dict) else "NaN"
        raise UserError(f"{place}: field {name!r} is {kind}, not text; name another field or change the row")
    elif value is not None:
        yield str(value).encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot


def _unknown(name: str, row: Any, place: str) -> UserError:
    """Return the error for a field that a row does not have, with settings that read the fields it has."""
    fields = dict(row) if isinstance(row, dict) else {}
    texts = [field for field, value in fields.items() if field != "id" and isinstance(value, str | list)]
    answer = next(filter(ANSWERING.search, texts), texts[-1] if texts else "")
    rest = [field for field in texts if field != answer]
    question = next(filter(ASKING.search, rest), rest[0] if rest else "")
    near = did_you_mean(name, list(fields))
    fix = ""
    if question and not near and ".cluster" not in place.partition(":")[0]:
        task = place.partition(":")[0].rpartition(".")[0]
        fix = f"; set e.g. {task}.prompt='{{{question}}}' {task}.references=[{answer}]"
    return UserError(f"{place} has no field {name!r}{near} (fields: {', '.join(fields)}){fix}")
