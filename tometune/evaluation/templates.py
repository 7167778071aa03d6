"""Fields of an example: prompt templates and the paths of references."""

from collections.abc import Iterator
from string import Formatter
from typing import Any

from tometune.common.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant")
"""In a list of messages, a role reaches into the first message of that role."""


class UnknownFieldError(KeyError):
    """A path names a field that is not there; carries the name and the fields that are."""

    def __init__(self, name: str, fields: list[str]) -> None:
        super().__init__(name)
        self.name = name
        self.fields = fields

    def message(self, where: str, origin: str) -> str:
        """Return one line: where the name was written, which row lacks it, what the row has."""
        near = did_you_mean(self.name, self.fields)
        return f"{where}: {origin} has no field {self.name!r}{near} (fields: {', '.join(self.fields)})"


def render(template: str, fields: dict[str, Any], where: str, origin: str) -> str:
    """Replace each `{field}` of a template by that field of the example; `{{` and `}}` are plain braces.

    An absent value (null) becomes empty, a list is joined by commas, and white space around the whole goes.

    Args:
        template: the text with its fields.
        fields: the row.
        where: key of the template in the config, e.g. `eval.tasks.qa.prompt`.
        origin: the row's file and line.

    Raises:
        UserError: the template is malformed or names a field the row does not have.
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
            raise UserError(f"{where}: only plain {{field}} is understood, not a format; e.g. {{input}}")
        try:
            text.append(", ".join(reach(fields, name)))
        except UnknownFieldError as error:
            raise UserError(error.message(where, origin)) from None
    return "".join(text).strip()


def collect(paths: list[str], fields: dict[str, Any], where: str, origin: str) -> list[str]:
    """Return the distinct, non-empty references of an example, in order.

    Raises:
        UserError: a path names no field, or no reference has any text.
    """
    try:
        found = [text.strip() for path in paths for text in reach(fields, path)]
    except UnknownFieldError as error:
        raise UserError(error.message(where, origin)) from None
    references = list(dict.fromkeys(text for text in found if text))
    if not references:
        raise UserError(f"{where}: {origin} has no reference with any text; remove the row or name another field")
    return references


def reach(value: Any, path: str) -> Iterator[str]:
    """Yield every value at a dotted path as text; a list on the way gives the values of each of its entries.

    In a list of `{role, content}` messages, a role name picks the content of the first message of that role:
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
