"""Local files as batches of rows: parquet, JSONL and JSON. Each row keeps its file and line for errors."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# Enough rows to be fast, and few enough that their Python objects need little memory.
BATCH = 2_000
BATCH_BYTES = 16 * 2**20

SUFFIXES = (".parquet", ".jsonl", ".json")
FIX_LINE = "fix or delete this line"


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source; they are parsed in the process that asks for `rows`."""

    content: Any  # rows, JSON lines as bytes, or a pyarrow.RecordBatch
    origin: str  # file or dataset
    numbers: Sequence[int]  # position of each row: lines count from 1, rows from 0
    lines: bool = False  # whether `content` is JSON lines

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows as Python objects; a `UserError` names a line that is not a JSON object in UTF-8."""
        if not isinstance(self.content, list):
            return _arrow_rows(self.content)
        if not self.lines:
            return list(self.content)
        positions = map(self.where, range(len(self)))
        return [
            _checked(_loads(line.strip(), at, FIX_LINE), at, FIX_LINE)
            for line, at in zip(self.content, positions, strict=True)
        ]

    def where(self, index: int) -> str:
        """Return the file and line of a row, for errors."""
        number = self.numbers[index]
        return f"{self.origin}, line {number}" if self.lines else f"{self.origin}, row {number} (the first is 0)"


def read_file(file: Path) -> Iterator[Batch]:
    """Yield the rows of a file in order; the suffix decides how it is read."""
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".json" and _begins(file) == b"[":
            yield from _array(file)
        else:  # many .json files hold one object per line
            yield from _lines(file)
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> UserError:
    """Return the error for a file that the system does not let us read."""
    return UserError(f"{file}: cannot be read ({error.strerror or error}); check that it exists and is readable")


def batches(rows: list[Row], origin: str) -> Iterator[Batch]:
    """Yield rows that are already in memory."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield Batch(part, origin, range(start, start + len(part)))


def _parquet(file: Path) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    try:
        with pq.ParquetFile(file) as opened:
            groups = (opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups))
            longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0)
            for batch in opened.iter_batches(int(min(BATCH, max(1, BATCH_BYTES // max(longest, 1))))):
                yield Batch(batch, str(file), range(start, start + len(batch)))
                start += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: is not a complete parquet file ({reason}); copy it again") from error


def _lines(file: Path) -> Iterator[Batch]:
    """Read one JSON object per line; blank lines are skipped but counted."""
    lines: list[bytes] = []
    numbers: list[int] = []
    size = 0
    with file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if line.isspace():
                continue
            lines.append(line)
            numbers.append(number)
            size += len(line)
            if len(lines) == BATCH or size > BATCH_BYTES:
                yield Batch(lines, str(file), numbers, lines=True)
                lines, numbers, size = [], [], 0
    if lines:
        yield Batch(lines, str(file), numbers, lines=True)


def _checked(row: Any, position: str, fix: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{position}: is not an object {{…}}; {fix}")
    return row


def _loads(content: bytes, position: str, fix: str) -> Any:
    """Parse JSON in UTF-8. `json.loads(bytes)` would guess other encodings, so the bytes are decoded here."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{position}: is not JSON ({error.msg}, {place}); {fix}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{position}: is not UTF-8 ({error.reason} at byte {error.start}); {fix}") from None
    except ValueError as error:  # a number with more digits than Python parses
        raise UserError(f"{position}: cannot be read ({str(error).partition(';')[0]}); {fix}") from None
    except RecursionError:
        raise UserError(f"{position}: is nested too deeply; {fix}") from None


def _begins(file: Path) -> bytes:
    """Return the first byte of a text file that is neither white space nor byte order mark."""
    with file.open("rb") as content:
        return content.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _array(file: Path) -> Iterator[Batch]:
    rows = _loads(file.read_bytes(), str(file), "fix the file, or write one object per line")
    for number, row in enumerate(rows):
        _checked(row, f"{file}, row {number} (the first is 0)", "fix or delete it")
    yield from batches(rows, str(file))


def _arrow_rows(batch: "pa.RecordBatch") -> list[Row]:
    """Convert Arrow rows; bytes that are not UTF-8 become lone surrogates, which `fix_conversation` replaces."""
    import pyarrow as pa

    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        schema = pa.schema([pa.field(field.name, _bytes_type(field.type)) for field in batch.schema])
        return _decoded(batch.cast(schema).to_pylist())  # type: ignore[no-any-return]


def _bytes_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the Arrow type with bytes instead of text, at any depth."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(kind):
        return _bytes_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _bytes_type(field.type)) for field in kind])
    return kind


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _decoded(entry) for name, entry in value.items()}
    return value
