"""Readers of local files: parquet, JSONL and JSON as batches of plain rows, each with its place for errors."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tometune.config.errors import UserError

Row = dict[str, Any]

BATCH = 2_000
"""Rows a batch: enough to be fast, few enough that Python objects never add up."""

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Batch:
    """Some rows that follow each other in a source."""

    rows: list[Row]

    origin: str
    """File or dataset they are from."""

    numbers: Sequence[int]
    """Where each row stands in it: a line counted from 1, or a row counted from 0."""

    lines: bool = False
    """Whether `numbers` are lines."""

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
            for batch in opened.iter_batches(BATCH):
                yield Batch(batch.to_pylist(), str(file), range(start, start + len(batch)))
                start += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file}: is not a whole parquet file ({str(error).splitlines()[0]}); copy it again") from error


def _lines(file: Path) -> Iterator[Batch]:
    """Read one JSON object a line; blank lines are passed over."""
    with file.open("rb") as content:
        filled = ((number, line) for number, line in enumerate(content, start=1) if not line.isspace())
        while part := list(islice(filled, BATCH)):
            rows = [_object(line, f"{file}, line {number}") for number, line in part]
            yield Batch(rows, str(file), [number for number, _ in part], lines=True)


def _object(line: bytes, where: str) -> Row:
    """Read one line."""
    row = _loads(line.strip(), where, "mend or remove the line")
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object {{…}}; mend or remove the line")
    return row


def _loads(content: bytes, where: str, fix: str) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: is not JSON ({error.msg}, {place}); {fix}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason} at byte {error.start}); {fix}") from None
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
