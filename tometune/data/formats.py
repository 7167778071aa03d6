"""Row formats: ShareGPT, messages, Alpaca and prompt/completion as turns. Rows of an unknown shape are rejected."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.config.data import RowFormat

Turn = tuple[str, str]  # role and text

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
"""Role names found in datasets, and the standard role of each."""

CONVERSATION_COLUMNS = ("conversations", "messages", "conversation")
COLUMNS = {RowFormat.alpaca: ("instruction", "output"), RowFormat.prompt_completion: ("prompt", "completion")}
"""Columns that a format needs."""

NEEDED = "a column conversations or messages with a list of turns, or instruction and output, or prompt and completion"

# Limits of what an error lists: a table can have thousands of columns with any names.
MOST_NAMES, LONGEST_NAME = 30, 60


class FormatError(ValueError):
    """A row that does not match its format; the message says how to fix it."""


def format_of(rows: Sequence[dict[str, Any]], requested: RowFormat, where: str) -> RowFormat:
    """Return the format of a file's rows: the requested one if the columns allow it, or for `auto` the recognised one.

    Raises:
        UserError: the format is unknown or not the requested one; lists the columns.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    conversation = any(column in columns for column in CONVERSATION_COLUMNS)
    if requested is not RowFormat.auto:
        if conversation if requested not in COLUMNS else all(column in columns for column in COLUMNS[requested]):
            return requested
        needs = " and ".join(COLUMNS.get(requested, ())) or " or ".join(CONVERSATION_COLUMNS)
        raise UserError(
            f"{where}: format={requested} needs {needs}, but the columns are {_names(columns)}; try format=auto"
        )
    shape = next((shape for row in rows if (shape := _conversation_shape(row))), None)
    if shape:
        return shape
    for form, needed in COLUMNS.items():
        if all(column in columns for column in needed):
            return form
    filled = {column: row[column] for row in rows for column in CONVERSATION_COLUMNS if row.get(column)}
    if conversation and not filled:
        return RowFormat.messages  # all of them are null or empty
    if not filled:
        raise UserError(f"{where}: no conversation column among {_names(columns)}; a row needs {NEEDED}")
    column, value = next(iter(filled.items()))
    kind = type(value).__name__ + (f" of {type(value[0]).__name__}" if isinstance(value, list) else "")
    raise UserError(f"{where}: column {column} holds {kind}, not a list of turns; a row needs {NEEDED}")


def _names(names: Iterable[str]) -> str:
    """List column or key names in one short line, whatever they contain."""
    shown = [_short(name) if name.isprintable() else repr(_short(name)) for name in names]
    more = f" and {len(shown) - MOST_NAMES:,} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def _conversation_shape(row: dict[str, Any]) -> RowFormat | None:
    """Return the format that a row's first turn shows, if it has a turn."""
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


def _turns(turns: Any, role_key: str, text_key: str) -> list[Turn]:
    """Read a list of turns such as `[{from, value}]` or `[{role, content}]`; null is an empty list."""
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise FormatError(f"the conversation is of type {type(turns).__name__}; make it a list of turns")
    read: list[Turn] = []
    for turn in turns:
        if turn is None:
            read.append(("", ""))  # removed and counted later, like every turn without text
            continue
        if not isinstance(turn, dict):
            raise FormatError(f"a turn is of type {type(turn).__name__}; make it {{{role_key}, {text_key}}}")
        try:
            role = ROLES[turn[role_key]]
        except (KeyError, TypeError):
            raise _role_error(turn, role_key) from None
        if text_key not in turn:
            raise FormatError(
                f"a turn has no text in {text_key!r} (its keys: {_names(turn)}); rename the key, or set it to null"
            )
        read.append((role, _text(turn[text_key])))
    return read


def _role_error(turn: dict[str, Any], role_key: str) -> FormatError:
    known = f"use one of {', '.join(ROLES)}"
    if turn.get(role_key) is None:
        return FormatError(f"a turn has no role in {role_key!r} (its keys: {_names(turn)}); {known}")
    role = _short(str(turn[role_key]))
    return FormatError(f"unknown role {role!r}{did_you_mean(role, list(ROLES)) or ';'} {known}")


def _alpaca(row: dict[str, Any]) -> list[Turn]:
    """Read `instruction`, optional `input` (appended to the instruction), optional `system`, and `output`."""
    instruction, extra = _text(row.get("instruction")), _text(row.get("input"))
    prompt = f"{instruction}\n\n{extra}" if instruction and extra else instruction or extra
    return [("system", _text(row.get("system"))), ("user", prompt), ("assistant", _text(row.get("output")))]


def _prompt_completion(row: dict[str, Any]) -> list[Turn]:
    """Read `prompt` and `completion`, each a text or a list of messages."""
    turns: list[Turn] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(column)
        turns += _turns(value, "role", "content") if isinstance(value, list) else [(role, _text(value))]
    return turns


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise FormatError(f"a turn's text is of type {type(value).__name__}; make it text")
