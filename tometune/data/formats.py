"""Formats: ShareGPT, messages, Alpaca and prompt/completion rows, read as turns of (role, text)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.config.data import RowFormat

Turn = tuple[str, str]

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Role names in use, and what each is standardised to."""

NULL_TURN: Turn = ("", "")
"""A turn that is null; like every turn without text it is removed and counted."""

CONVERSATION_COLUMNS = ("conversations", "messages", "conversation")
COLUMNS = {RowFormat.alpaca: ("instruction", "output"), RowFormat.prompt_completion: ("prompt", "completion")}
"""Columns that a format cannot do without."""

WANTED = "a column conversations or messages with a list of turns, or instruction and output, or prompt and completion"

MOST_NAMES, LONGEST = 30, 60
"""Names that an error lists, and characters of each."""


class FormatError(ValueError):
    """A row is not of its format; says what is wrong and what to do."""


def format_of(rows: Sequence[dict[str, Any]], asked: RowFormat, where: str) -> RowFormat:
    """Return the format of these rows: the one asked for if the columns allow it, or the one their columns show.

    Args:
        rows: some rows of one source; a row may lack a column, or have a null in it.
        asked: the format in the config, `auto` to recognise it.
        where: file or dataset, for errors.

    Raises:
        UserError: no known format, or not the one asked for; lists the columns.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    conversation = any(column in columns for column in CONVERSATION_COLUMNS)
    if asked is not RowFormat.auto:
        if conversation if asked not in COLUMNS else all(column in columns for column in COLUMNS[asked]):
            return asked
        needs = " and ".join(COLUMNS.get(asked, ())) or " or ".join(CONVERSATION_COLUMNS)
        raise UserError(f"{where}: format={asked} needs {needs}, the columns are {_names(columns)}; try format=auto")
    shape = next((shape for row in rows if (shape := _conversation_shape(row))), None)
    if shape:
        return shape
    for form, needed in COLUMNS.items():
        if all(column in columns for column in needed):
            return form
    filled = {column: row[column] for row in rows for column in CONVERSATION_COLUMNS if row.get(column)}
    if conversation and not filled:
        return RowFormat.messages  # all of them null or empty
    if filled:
        column, value = next(iter(filled.items()))
        raise UserError(f"{where}: column {column} holds {_kind(value)}, not a list of turns; a row needs {WANTED}")
    raise UserError(f"{where}: no conversation column among {_names(columns)}; a row needs {WANTED}")


def _kind(value: Any) -> str:
    """Name the type of a value, of a list's entries too."""
    name = type(value).__name__
    return f"{name} of {type(value[0]).__name__}" if isinstance(value, list) else name


def _names(names: Iterable[str]) -> str:
    """List the names of columns or keys in one line, however many and whatever they are."""
    shown = [_short(name) if name.isprintable() else repr(_short(name)) for name in names]
    more = f" and {len(shown) - MOST_NAMES:,} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def _short(text: str) -> str:
    """Cut a text for an error."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _conversation_shape(row: dict[str, Any]) -> RowFormat | None:
    """Return the format by a row's first turn, if it has one."""
    for column in CONVERSATION_COLUMNS:
        turns = row.get(column)
        if isinstance(turns, list):
            for turn in turns:
                if isinstance(turn, dict):
                    return RowFormat.sharegpt if "from" in turn else RowFormat.messages
    return None


def reader(form: RowFormat) -> Callable[[dict[str, Any]], list[Turn]]:
    """Return the function that reads a row of this format as turns; it raises `FormatError`."""
    return {
        RowFormat.sharegpt: lambda row: _turns(_conversation(row), "from", "value"),
        RowFormat.messages: lambda row: _turns(_conversation(row), "role", "content"),
        RowFormat.alpaca: _alpaca,
        RowFormat.prompt_completion: _prompt_completion,
    }[form]


def _conversation(row: dict[str, Any]) -> Any:
    """Return the first conversation column that holds turns; if none does, the first that is not null."""
    values = [row[column] for column in CONVERSATION_COLUMNS if row.get(column) is not None]
    return next((value for value in values if isinstance(value, list) and any(value)), values[0] if values else None)


def _turns(turns: Any, role_name: str, text_name: str) -> list[Turn]:
    """Read a list of turns, e.g. `[{from, value}]` or `[{role, content}]`; null is an empty one."""
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise FormatError(f"the conversation is of type {type(turns).__name__}; make it a list of turns")
    read: list[Turn] = []
    for turn in turns:
        if turn is None:
            read.append(NULL_TURN)
            continue
        if not isinstance(turn, dict):
            raise FormatError(f"a turn is of type {type(turn).__name__}; make it {{{role_name}, {text_name}}}")
        try:
            role = ROLES[turn[role_name]]
        except (KeyError, TypeError):
            raise _no_role(turn, role_name) from None
        if text_name not in turn:
            had = _names(turn)
            raise FormatError(
                f"a turn has no text in {text_name!r} (it has {had}); rename its key, null if it is empty"
            )
        read.append((role, text(turn[text_name])))
    return read


def _no_role(turn: dict[str, Any], role_name: str) -> FormatError:
    """Return the error for a turn whose role is missing or not in `ROLES`."""
    known = f"use one of {', '.join(ROLES)}"
    if turn.get(role_name) is None:
        return FormatError(f"a turn has no role in {role_name!r} (it has {_names(turn)}); {known}")
    role = _short(str(turn[role_name]))
    return FormatError(f"unknown role {role!r}{did_you_mean(role, list(ROLES)) or ';'} {known}")


def _alpaca(row: dict[str, Any]) -> list[Turn]:
    """`instruction`, optional `input` (put below the instruction), optional `system`, `output`."""
    instruction, extra = text(row.get("instruction")), text(row.get("input"))
    asked = f"{instruction}\n\n{extra}" if instruction and extra else instruction or extra
    return [("system", text(row.get("system"))), ("user", asked), ("assistant", text(row.get("output")))]


def _prompt_completion(row: dict[str, Any]) -> list[Turn]:
    """`prompt` and `completion`, each a text or a list of messages."""
    turns: list[Turn] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(column)
        turns += _turns(value, "role", "content") if isinstance(value, list) else [(role, text(value))]
    return turns


def text(value: Any) -> str:
    """Return a turn's text; null is empty.

    Raises:
        FormatError: it is neither text nor null.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise FormatError(f"a turn's text is of type {type(value).__name__}; make it text")
