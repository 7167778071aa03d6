"""Readers of local files: parquet, JSONL and JSON in batches, each row with its place for errors.

A batch holds its rows as they came, Arrow or lines; Python objects are made of it only where it is asked for them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

BATCH = 2_000
"""Most rows of a batch: enough to be fast, few enough that Python objects never add up."""

BATCH_BYTES = 16 * 2**20
"""Bytes of text after which a batch ends earlier, so that long rows do not add up either."""

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Batch:
    """Some rows that follow each other in a source."""

    content: "list[Row] | list[bytes] | pa.RecordBatch"
    """The rows: plain, as one JSON object a line, or as Arrow."""

    origin: str
    """File or dataset they are from."""

    numbers: Sequence[int]
    """Where each row stands in it: a line counted from 1, or a row counted from 0."""

    lines: bool = False
    """Whether `numbers` are lines, and `content` is bytes."""

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows as Python objects.

        Raises:
            UserError: a line is not a JSON object in UTF-8.
        """
        if not isinstance(self.content, list):
            return plain(self.content)
        return [
            _object(entry, self.where(index)) if isinstance(entry, bytes) else entry
            for index, entry in enumerate(self.content)
        ]

    def where(self, index: int) -> str:
        """Return where a row stands, by its index in the batch."""
        number = self.numbers[index]
        return f"{self.origin}, line {number}" if self.lines else f"{self.origin}, row {number} (the first is 0)"


def read_file(file: Path) -> Iterator[Batch]:
    """Yield the rows of a file in their order; the suffix, one of `SUFFIXES`, tells what it is.

    Raises:
        UserError: the file is out of reach or broken; names the line where there is one.
    """
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".json" and _is_array(file):
            yield from _array(file)
        else:
            yield from _lines(file)
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> UserError:
    """Return the error for a file that the system does not let us read."""
    return UserError(f"{file}: cannot be read ({error.strerror or error}); check that it is there and its permissions")


def batches(rows: list[Row], origin: str) -> Iterator[Batch]:
    """Yield rows that are in memory already."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield Batch(part, origin, range(start, start + len(part)))


def _parquet(file: Path) -> Iterator[Batch]:
    """Read a parquet file by record batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_rows_a_batch(opened.metadata)):
                yield Batch(batch, str(file), range(start, start + len(batch)))
                start += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file}: is not a whole parquet file ({str(error).splitlines()[0]}); copy it again") from error


def _rows_a_batch(metadata: Any) -> int:
    """Return how many rows keep a batch below `BATCH_BYTES`, by the row group with the longest rows."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0)
    return int(min(BATCH, max(1, BATCH_BYTES // max(longest, 1))))


def _lines(file: Path) -> Iterator[Batch]:
    """Read one JSON object a line; blank lines are passed over."""
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


def _object(line: bytes, where: str) -> Row:
    """Read one line."""
    row = _loads(line.strip(), where, "mend or remove the line")
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object {{…}}; mend or remove the line")
    return row


def _loads(content: bytes, where: str, fix: str) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark; `json` would guess at other encodings."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: is not JSON ({error.msg}, {place}); {fix}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason} at byte {error.start}); {fix}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UserError(f"{where}: cannot be read ({str(error).partition(';')[0]}); {fix}") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply; {fix}") from None


def _is_array(file: Path) -> bool:
    """Tell whether a .json file is one array; many that are called so hold one object a line."""
    with file.open("rb") as content:
        return content.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array(file: Path) -> Iterator[Batch]:
    """Read a JSON array of objects."""
    rows = _loads(file.read_bytes(), str(file), "mend it; one object a line is read too")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{file}, row {number} (the first is 0): is not an object {{…}}; mend or remove it")
    yield from batches(rows, str(file))


def plain(batch: "pa.RecordBatch") -> list[Row]:
    """Return Arrow rows as Python objects; bytes that are not UTF-8 become half surrogate pairs, which are mended."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = _decoded(_binary(batch).to_pylist())
    return rows


def simplified(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Return the batch with its texts and lists as plain strings and lists: no dictionaries, views, 64-bit offsets.

    A column that cannot be cast stays as it is. Bytes that are not UTF-8 stay what they are.
    """
    import pyarrow as pa

    fields, columns = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            column = column.cast(_simple_type(field.type)) if _simple_type(field.type) != field.type else column
        fields.append(pa.field(field.name, column.type))
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _simple_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the plain type, at any depth."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(kind):
        return _simple_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_simple_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _simple_type(field.type)) for field in kind])
    return kind


def _binary(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Return the batch with its texts as bytes, which costs no copy."""
    import pyarrow as pa

    return batch.cast(pa.schema([pa.field(field.name, _bytes_type(field.type)) for field in batch.schema]))


def _bytes_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the type with bytes in place of text, at any depth."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(_bytes_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _bytes_type(field.type)) for field in kind])
    return kind


def _decoded(value: Any) -> Any:
    """Decode the texts in nested rows."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _decoded(entry) for name, entry in value.items()}
    return value
