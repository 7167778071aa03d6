import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import write_jsonl
from tometune.common.errors import UserError
from tometune.data.readers import BATCH, read_file

ROWS = [{"n": n, "text": f"é {n}"} for n in range(BATCH + 3)]


def all_of(file: Path):
    return [(row, batch.where(index)) for batch in read_file(file) for index, row in enumerate(batch.checked_rows())]


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json", "lines.json"])
def test_rows_and_their_positions(tmp_path, name):
    file = tmp_path / name
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=700)
    elif name == "x.json":
        file.write_text("\n " + json.dumps(ROWS, indent=1))
    else:
        write_jsonl(file, ROWS)
    rows, places = zip(*all_of(file), strict=True)
    assert list(rows) == ROWS
    last = f"line {BATCH + 3}" if "lines" in name or name == "x.jsonl" else f"row {BATCH + 2} (the first is 0)"
    assert places[-1] == f"{file}, {last}"


def test_blank_lines_are_skipped_but_counted(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n \n")
    assert all_of(file) == []
    file.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\r\n  \n{"n": 1}')
    assert all_of(file) == [({"n": 0}, f"{file}, line 1"), ({"n": 1}, f"{file}, line 4")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"n": 1}\n' * 6 + b'{"n": 1, "te\n{"n": 2}', ", line 7: is not JSON (Unterminated string"),
        ("x.jsonl", b'{"n": 1}\n[1]', ", line 2: is not an object {…}; fix or delete this line"),
        ("x.jsonl", b'{"n": "\xff"}', ", line 1: is not UTF-8 (invalid start byte at byte 7); fix or delete this line"),
        ("x.jsonl", '{"n": 1}\n'.encode("utf-16"), ", line 1: is not UTF-8 (invalid start byte at byte 0); fix or"),
        ("x.jsonl", b'{"n": ' + b"1" * 5_000 + b"}", ", line 1: cannot be read (Exceeds the limit (4300 digits)"),
        ("x.jsonl", b'{"n": ' + b"[" * 200_000, ", line 1: is nested too deeply; fix or delete this line"),
        ("x.json", b'[{"n": 1},\n{"n"]', ": is not JSON (Expecting ':' delimiter, line 2, column 5); fix the file"),
        ("x.json", b'[{"n": 1}, 2]', ", row 1 (the first is 0): is not an object {…}; fix or delete it"),
        ("x.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", ": is not a complete parquet file ("),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        all_of(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot be read .* check that it exists"):
        all_of(tmp_path / name)
