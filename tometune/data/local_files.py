"""Local files as batches of rows with their file and line: parquet, Arrow, tables, and JSON in several layouts."""

import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tometune.common.errors import UserError
from tometune.data.formats import COLUMNS
from tometune.data.turns import FormatError, is_turn

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Row = dict[str, Any]

# Enough rows to be fast, and few enough that their Python objects need little memory.
BATCH = 2_000
BATCH_BYTES = 16 * 2**20

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow")
PACKED = {".gz": "gzip", ".zst": "zstd"}  # may follow the suffix of a text file
TABLES = {".csv": ",", ".tsv": "\t"}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_CELL = 2**31 - 1  # of a table; Python's own limit is 131,072 characters

SPACE = re.compile(r"\s*")
FIX_LINE = "fix or delete this line"

TRAIN = "train"  # the split that is read unless another is set
# Keys that hold the rows of a file that is one object, such as {"data": […]}; an object with columns of a row is a row.
WRAPPERS = ("data", "rows", TRAIN, "instances", "examples", "records", "items", "samples")
OF_A_ROW = frozenset(name for role in ("messages", "user", "assistant") for name in COLUMNS[role])


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
        return [_parsed(entry) for entry in self.content]

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


def kind_of(file: Path) -> str:
    """Return the suffix that decides how a file is read, in lower case, e.g. `.jsonl` or `.jsonl.gz`; or nothing."""
    ending = file.suffix.lower()
    inner = Path(file.stem).suffix.lower()
    if ending in PACKED and inner in SUFFIXES and inner not in (".parquet", ".arrow"):
        return inner + ending
    return ending if ending in SUFFIXES else ""


def read_file(file: Path, split: str = TRAIN) -> Iterator[Batch]:
    """Yield the rows of a file in order; of one JSON object with several splits, those of `split`.

    Raises:
        UserError: the file as a whole cannot be read. A broken row in it is a `FormatError`.
    """
    import pyarrow as pa

    kind = kind_of(file)
    kind = kind.removesuffix(file.suffix.lower()) or kind
    try:
        with file.open("rb") as content:
            head = content.read(len(LFS_POINTER))
        if head == LFS_POINTER:
            raise UserError(f"{file}: is a Git LFS pointer, not the data; run `git lfs pull` in its repository")
        if head[:2] in UTF16:
            raise UserError(f"{file}: is in UTF-16; save it as UTF-8")
        if kind == ".parquet":
            yield from numbered(_parquet(file), str(file))
        elif kind == ".arrow":
            yield from numbered(_arrow(file), str(file))
        elif kind in TABLES:
            yield from _batched(file, _table(file, TABLES[kind]))
        else:
            yield from _json(file, kind, split)
    except csv.Error as error:
        raise UserError(f"{file}: is not a table ({error}); write it again, or as JSONL") from error
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(file, error) from error
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: is not a complete file ({reason}); copy it again") from error


def unreadable(file: Path, error: OSError) -> UserError:
    """Return the error for a file that the system does not let us read."""
    return UserError(f"{file}: cannot be read ({error.strerror or error}); check that it exists and is readable")


def batches(rows: list[Any], origin: str) -> Iterator[Batch]:
    """Yield rows that are already in memory."""
    return numbered((rows[start : start + BATCH] for start in range(0, len(rows), BATCH)), origin)


def numbered(parts: Iterable[Any], origin: str) -> Iterator[Batch]:
    """Yield lists of rows or Arrow batches, which follow each other in `origin`, as batches."""
    start = 0
    for part in parts:
        yield Batch(part, origin, range(start, start + len(part)))
        start += len(part)


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        _check_names(file, opened.schema_arrow.names)
        groups = (opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups))
        longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0)
        yield from opened.iter_batches(int(min(BATCH, max(1, BATCH_BYTES // max(longest, 1)))))


def _arrow(file: Path) -> Iterator[Any]:
    """Read an Arrow file as `save_to_disk` writes it, or in the layout with a footer."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        footer = source.read(6) == b"ARROW1"
        source.seek(0)
        opened = pa.ipc.open_file(source) if footer else pa.ipc.open_stream(source)
        _check_names(file, opened.schema.names)
        for whole in map(opened.get_batch, range(opened.num_record_batches)) if footer else opened:
            yield from (whole.slice(first, BATCH) for first in range(0, len(whole), BATCH))


def _check_names(file: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"{file}: has two columns {_repeated(names)!r}; rename or remove one")


def _open(file: Path) -> BinaryIO:
    """Open a file and decompress it on the way."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression=PACKED.get(file.suffix.lower())), BATCH_BYTES)


def _batched(file: Path, rows: Iterable[tuple[int, Any, int]]) -> Iterator[Batch]:
    """Yield rows in batches; each comes with its line and a measure of its size."""
    content: list[Any] = []
    numbers: list[int] = []
    total = 0
    for number, row, size in rows:
        content.append(row)
        numbers.append(number)
        total += size
        if len(content) == BATCH or total > BATCH_BYTES:
            yield Batch(content, str(file), numbers, lines=True)
            content, numbers, total = [], [], 0
    if content:
        yield Batch(content, str(file), numbers, lines=True)


def _lines(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """Read lines; blank ones are skipped but counted."""
    with _open(file) as content:
        for number, line in enumerate(content, start=1):
            if not line.isspace():
                yield number, line, len(line)


def _table(file: Path, delimiter: str) -> Iterator[tuple[int, Row | FormatError, int]]:
    """Read a table with a header. Bytes that are not UTF-8 become lone surrogates, which are replaced and counted."""
    csv.field_size_limit(LONGEST_CELL)
    with io.TextIOWrapper(_open(file), "utf-8-sig", errors="surrogateescape", newline="") as text:
        first = text.readline()
        other = next((mark for mark in ";\t|," if mark in first), "")
        if other and delimiter not in first:
            reason = f"its columns are separated by {other!r}, not {delimiter!r}"
            raise UserError(f"{file}: {reason}; write it with {delimiter!r}, or as JSONL")
        table = csv.reader(chain([first], text), strict=True, delimiter=delimiter)
        header = [name or f"column {number}" for number, name in enumerate(next(table, []), start=1)]
        _check_names(file, header)
        cells: list[str] | None = header
        while cells is not None:
            start = table.line_num + 1
            try:
                cells = next(table, None)
                lines = "\t".join(cells or ()).splitlines() if delimiter == "\t" and len(header) > 1 else ()
                if len(lines) > 1 and {line.count("\t") for line in lines} == {len(header) - 1}:
                    raise csv.Error("each of its lines could be a row")
            except csv.Error as error:
                # An open quote takes the next rows into its cell, so each line counts as a row that is lost.
                bad = FormatError("broken_quotes", f'has a quote that is not closed ({error}); double each " in a cell')
                yield from ((number, bad, 0) for number in range(start, table.line_num + 1))
                continue
            if cells:
                row: Row | FormatError = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    reason = f"has {len(cells)} cells and the header has {len(header)}; put cells with"
                    row = FormatError("wrong_number_of_cells", f"{reason} {delimiter!r} in double quotes")
                yield start, row, sum(map(len, cells))


def _json(file: Path, kind: str, split: str) -> Iterator[Batch]:
    """Read one object per line, or a list, an object over several lines, or an object that holds the rows.

    The first line decides, whatever the suffix: many .json files hold one object per line, some .jsonl files a list.
    """
    head, *more = [line for _, line, _ in islice(_lines(file), 2)] or [b""]
    begin, first = head.removeprefix(b"\xef\xbb\xbf").strip(), None
    with suppress(ValueError, RecursionError):
        first = _parsed_line(head)
    if first is None:  # a broken line of many is one bad row, and the file is not read into memory
        documents = begin[:1] == b"[" or (bool(more) and begin[-1:] in b"{[,:")
    elif isinstance(first, list) and not _is_turns(first):
        documents = isinstance((first or [0])[0], dict) or (kind == ".json" and not more)
    else:
        documents = not more and _holds_rows(first, split) is not None
    if documents:
        try:
            with _open(file) as content:
                values = [*_documents(file, content.read())]
        except UserError:
            # Perhaps only the first line is broken. The lines of an object over several lines are indented.
            sample = [line for _, line, _ in islice(_lines(file), BATCH)]
            if 2 * sum(line[:1] == b"{" and isinstance(_parsed(line), dict) for line in sample) < len(sample):
                raise
        else:
            rows = [row for value in values for row in _unwrapped(file, value, split)]
            yield from batches([_checked_row(row, "fix or delete it") for row in rows], str(file))
            return
    yield from _batched(file, _lines(file))


def _documents(file: Path, content: bytes) -> Iterator[Any]:
    """Parse JSON values that follow each other, as indented objects may."""
    fix = "fix the file, or write one object per line"
    position = 0
    try:
        text = content.decode("utf-8-sig")
        while (position := SPACE.match(text, position).end()) < len(text):  # type: ignore[union-attr]
            value, position = DECODER.raw_decode(text, position)
            yield value
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {_defect(error).message}; {fix}") from None


def _holds_rows(value: Any, split: str) -> str | None:
    """Return the key of an object that holds rows; turns are not rows."""
    keys = WRAPPERS if split == TRAIN else (split, *WRAPPERS)
    for key in keys if isinstance(value, dict) and OF_A_ROW.isdisjoint(value) else ():
        rows = value.get(key)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and not is_turn(rows[0]):
            return key
    return None


def _unwrapped(file: Path, value: Any, split: str) -> list[Any]:
    """Return the entries of a list, the rows that an object holds, or the object itself or a list of turns as a row."""
    if isinstance(value, list) and not _is_turns(value):
        return value
    key = _holds_rows(value, split)
    if key is None:
        return [value]
    others = [name for name, entry in value.items() if isinstance(entry, list) and name != key]
    if key == TRAIN != split and others:
        raise UserError(f"{file}: holds {', '.join([key, *others])} and no rows as {split!r}; set split to one of them")
    log.info("%s: the rows below %r are read%s", file, key, f", not {', '.join(others)}" if others else "")
    return value[key]  # type: ignore[no-any-return]


def _is_turns(value: Any) -> bool:
    """Whether a value is a conversation without an object around it."""
    turns = isinstance(value, list) and all(map(is_turn, value))
    return bool(turns and value and {"content", "value"} & value[0].keys())


def _repeated(names: list[str]) -> str:
    """Return the first name that occurs twice."""
    return next(name for name in names if names.count(name) > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; Python's parser would keep the last of two values with the same key."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise FormatError("repeated_key", f"has the key {_repeated([name for name, _ in pairs])!r} twice")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parsed_line(line: bytes) -> Any:
    """Parse a line; `json.loads(bytes)` would guess its encoding."""
    return DECODER.decode(line.strip().removesuffix(b",").decode("utf-8-sig"))


def _parsed(entry: Any) -> Row | FormatError:
    """Return a row, parsed if it is a line."""
    if not isinstance(entry, bytes):
        return entry  # type: ignore[no-any-return]
    try:
        return _checked_row(_parsed_line(entry), FIX_LINE)
    except (ValueError, RecursionError) as error:
        bad = _defect(error)
        return FormatError(bad.reason, f"{bad.message}; {FIX_LINE}")


def _checked_row(row: Any, fix: str) -> Row | FormatError:
    """Return a parsed value as a row: an object, or a list of turns as an object around it."""
    if _is_turns(row):
        return {"messages": row}
    return row if isinstance(row, dict) else FormatError("not_an_object", f"is not an object {{…}}; {fix}")


def _defect(error: Exception) -> FormatError:
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
