import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import error_of, write_jsonl
from tometune.common.errors import UserError
from tometune.data.local_files import BATCH, read_file
from tometune.data.turns import FormatError

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
        ("x.jsonl", '{"n": 1}\n'.encode("utf-16"), ": is in UTF-16; save it as UTF-8"),
        ("x.csv", "tide,time\n".encode("utf-16"), ": is in UTF-16; save it as UTF-8"),
        ("x.csv", b"tide;time\nhigh;5\n", ": its columns are separated by ';', not ','; write it with ',', or as"),
        ("x.csv", b'"tide"|"time"\n', ": its columns are separated by '|', not ','; write it with ',', or as"),
        ("x.tsv", b"tide,time\nhigh,5\n", ": its columns are separated by ',', not '\\t'; write it with '\\t', or as"),
        ("x.csv", b"sep=;\r\ntide;time\r\n", ": its columns are separated by ';', not ','; write it"),
        ("x.csv", b"tide,time,time\nhigh,5,6\n", ": has two columns 'time'; rename or remove one"),
        ("x.jsonl", b'{"n": 1, "m": {"n": 2, "n": 3}}\n', ", line 1: has the key 'n' twice; fix or delete this line"),
        ("x.json", b'[{"n": 2, "n": 3}]', ": has the key 'n' twice; fix the file, or write one object per line"),
        ("x.jsonl", b'{"n": ' + b"1" * 5_000 + b"}", ", line 1: cannot be read (Exceeds the limit (4300 digits)"),
        ("x.jsonl", b'{"n": ' + b"[" * 200_000, ", line 1: is nested too deeply; fix or delete this line"),
        ("x.json", b'[{"n": 1},\n{"n"]', ": is not JSON (Expecting ':' delimiter, line 2, column 5); fix the file"),
        ("x.json", b'[{"n": 1}, 2]', ", row 1 (the first is 0): is not an object {…}; fix or delete it"),
        ("x.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", ": is not a complete file ("),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    assert error_of(all_of, file).startswith(f"{file}{message}")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_two_columns_with_one_name(tmp_path, name):
    table = pa.table([pa.array(["low"]), pa.array(["high"])], names=["tide", "tide"])
    if name == "x.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match="has two columns 'tide'; rename or remove one"):
        all_of(tmp_path / name)


NOT_CLOSED = "has a quote that is not closed (unexpected end of data)"
NOT_DOUBLED = "has a quote that is not closed ("
FIRST = "is not JSON ("


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.csv", 'a,b\nx,1\ny,"2\nz,3\nw,4\n', [("x", "1"), NOT_CLOSED, NOT_CLOSED, NOT_CLOSED]),
        ("x.csv", 'a,b\nx,"1" or 2\ny,"2\nz,"3"\nw,4\n', [NOT_DOUBLED] * 3 + [("w", "4")]),
        ("x.csv", 'a,b\nx,"one ""1""\n, two"\ny,2" or 3"\n', [("x", 'one "1"\n, two'), ("y", '2" or 3"')]),
        ("x.csv", "a,,\nx,,\n", [("x", "", "")]),
        ("x.tsv", 'a\tb\nx\t"Yes" he said\ny\t"1\nz\t2" two\nw\t4\n', [NOT_DOUBLED] * 3 + [("w", "4")]),
        ("x.tsv", 'a\tb\ny\t"1\nz\t2"\nw\t"3\n4"\n', [NOT_DOUBLED] * 2 + [("w", "3\n4")]),
        ("x.tsv", 'a\n"1\n2"\n', [("1\n2",)]),
        ("x.jsonl", '{"a": 1, \n{"a": 2}\n{"a": 3}\n', [FIRST, (2,), (3,)]),
        ("x.jsonl", '[broken\n{"a": 2}\n{"a": 3}\n', [FIRST, (2,), (3,)]),
        ("x.jsonl", '[1, 2]\n{"a": 2}\n', ["is not an object", (2,)]),
        ("x.jsonl", '{"a": 1},\n{"a": 2},\n', [(1,), (2,)]),
        ("x.jsonl", '{"a": 1, "a": 2}\n{"a": 3}\n', ["has the key 'a' twice", (3,)]),
        ("x.json", '{"question": "x", "items": [{"a": 1}]}\n', [("x", [{"a": 1}])]),
        ("x.json", '{"title": "x", "items": [{"a": 1}]}\n', [(1,)]),
    ],
)
def test_a_broken_row_is_one_bad_row(tmp_path, name, content, rows):
    file = tmp_path / name
    file.write_text(content)
    found = [row for batch in read_file(file) for row in batch.rows]
    assert len(found) == len(rows)
    for row, expected in zip(found, rows, strict=True):
        if isinstance(expected, str):
            assert isinstance(row, FormatError)
            assert row.message.startswith(expected)
        else:
            assert tuple(row.values()) == expected


TURNS = [{"role": "user", "content": "Is it high tide?"}, {"role": "assistant", "content": "At five."}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("indent", [None, 1])
def test_lists_of_turns_are_rows(tmp_path, name, count, indent):
    (tmp_path / name).write_text("\n".join([json.dumps(TURNS, indent=indent)] * count))
    assert [row for row, _ in all_of(tmp_path / name)] == [{"messages": TURNS}] * count


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot be read .* check that it exists"):
        all_of(tmp_path / name)
