"""Rows in batches, with their file and line, and how a JSON line or an Arrow batch becomes rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError
from tometune.data.turns import FormatError, is_turn

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

FIX_LINE = "fix or delete this line"


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source; they are parsed in the process that asks for `rows`."""

    content: Any  # a list of rows, errors of bad rows, and JSON lines (bytes), or a pyarrow.RecordBatch
    origin: str  # file or dataset
    numbers: Sequence[int]  # position of each row: lines count from 1, rows from 0
    lines: bool = False  # whether `numbers` are lines

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def rows(self) -> list[Row | FormatError]:
        """The rows as Python objects; a row that is not a JSON object in UTF-8 is a `FormatError`."""
        if not isinstance(self.content, list):
            return _arrow_rows(self.content)
        return [parsed(entry) for entry in self.content]

    def checked_rows(self) -> list[Row]:
        """Return the rows; raises a `UserError` that names the first bad one."""
        for index, row in enumerate(self.rows):
            if isinstance(row, FormatError):
                raise UserError(f"{self.where(index)}: {row.message}")
        return self.rows  # type: ignore[return-value]

    def where(self, index: int) -> str:
        """Return the file and line of a row, for errors."""
        number = self.numbers[index]
        return f"{self.origin}, line {number}" if self.lines else f"{self.origin}, row {number} (the first is 0)"


def is_turns(value: Any) -> bool:
    """Whether a value is a conversation without an object around it."""
    turns = isinstance(value, list) and all(map(is_turn, value))
    return bool(turns and value and {"content", "value"} & value[0].keys())


def repeated(names: list[str]) -> str:
    """Return the first name that occurs twice."""
    return next(name for name in names if names.count(name) > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; Python's parser would keep the last of two values with the same key."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise FormatError("repeated_key", f"has the key {repeated([name for name, _ in pairs])!r} twice")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parsed_line(line: bytes) -> Any:
    """Parse a line. It is decoded here, because `json.loads(bytes)` guesses encodings."""
    return DECODER.decode(line.strip().removesuffix(b",").decode("utf-8-sig"))


def parsed(entry: Any) -> Row | FormatError:
    """Return a row, parsed if it is a line."""
    if not isinstance(entry, bytes):
        return entry  # type: ignore[no-any-return]
    try:
        return checked_row(parsed_line(entry), FIX_LINE)
    except (ValueError, RecursionError) as error:
        bad = defect(error)
        return FormatError(bad.reason, f"{bad.message}; {FIX_LINE}")


def checked_row(row: Any, fix: str) -> Row | FormatError:
    """Return a parsed value as a row: an object, or a list of turns as an object around it."""
    if is_turns(row):
        return {"messages": row}
    return row if isinstance(row, dict) else FormatError("not_an_object", f"is not an object {{…}}; {fix}")


def defect(error: Exception) -> FormatError:
    """Return why a text is not JSON, without the fix."""
    if isinstance(error, FormatError):
        return error
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return FormatError("not_json", f"is not JSON ({error.msg}, {place})")
    if isinstance(error, UnicodeDecodeError):
        return FormatError("not_utf8", f"is not UTF-8 ({error.reason} at byte {error.start})")
    if isinstance(error, RecursionError):
        return FormatError("nested_too_deeply", "is nested too deeply")
    # A number with more digits than Python parses.
    return FormatError("number_too_long", f"cannot be read ({str(error).partition(';')[0]})")


def _arrow_rows(batch: "pa.RecordBatch") -> list[Any]:
    """Convert Arrow rows; bytes that are not UTF-8 become lone surrogates, which `fix_conversation` replaces."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_value(row) for row in batch.to_struct_array()]
    for name in (field.name for field in batch.schema if str(field.type).count("struct<") > 1):
        for row in rows:
            row[name] = _without_nulls(row[name])
    return rows


def _value(scalar: "pa.Scalar") -> Any:
    """Convert an Arrow value that may hold text that is not UTF-8; Arrow's own conversion is strict, and faster."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(value) for name, value in scalar.items()}
    if isinstance(scalar, pa.ListScalar):
        return [_value(value) for value in scalar]
    if isinstance(scalar, pa.StringScalar):  # also of the types `large_string` and `string_view`
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()


def _without_nulls(value: Any, level: int = 0) -> Any:
    """Drop the null keys of nested structs: Arrow gives each tool call the arguments of all others as nulls."""
    if isinstance(value, list):
        return [_without_nulls(entry, level) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry, level + 1) for key, entry in value.items() if not level or entry is not None}
    return value
