"""Files of every kind as rows; a broken file is one error, a broken row one bad row."""

import csv
import gzip
import io
import json
import tracemalloc
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import error_of, write_jsonl
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
    file.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\r\n  \n{"n": 1}')
    assert all_of(file) == [({"n": 0}, f"{file}, line 1"), ({"n": 1}, f"{file}, line 4")]


def table(rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([rows[0].keys(), *(row.values() for row in rows)])
    return text.getvalue().encode()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content):
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(content)
    return target.getvalue().to_pybytes()


def in_arrow(name):
    """Return a file with two columns of one name."""
    table, buffer = pa.table([pa.array(["low"]), pa.array(["high"])], names=["tide", "tide"]), io.BytesIO()
    if name == "x.parquet":
        pq.write_table(table, buffer)
    else:
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
    return buffer.getvalue()


ROW = {"input": "Who?", "output": "Nobody."}
LONG = {**ROW, "input": "a cell with, commas and\nlines, " * 9_000}
TURNS = [{"role": "user", "content": "Is it high tide?"}, {"role": "assistant", "content": "At five."}]
CHAT = {"messages": TURNS}
GZIPPED, ZSTD = gzip.compress(lines(ROW) * 999, mtime=0), zstd(lines(ROW) * 999)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.ndjson", lines(ROW, CHAT), [ROW, CHAT]),
        ("LOUD.JSONL", lines(ROW), [ROW]),
        ("x.json", lines(ROW, CHAT), [ROW, CHAT]),
        ("x.json", json.dumps(CHAT, indent=2).encode(), [CHAT]),
        ("x.jsonl", (json.dumps(ROW, indent=2) + "\n" + json.dumps(CHAT, indent=2)).encode(), [ROW, CHAT]),
        ("x.json", json.dumps({"version": 1, "data": [ROW, ROW]}).encode(), [ROW, ROW]),
        ("x.json", json.dumps({"train": [ROW], "test": [CHAT]}, indent=1).encode(), [ROW]),
        ("x.jsonl", json.dumps([ROW, ROW]).encode(), [ROW, ROW]),
        ("x.jsonl", lines({**CHAT, "data": "x"}), [{**CHAT, "data": "x"}]),
        ("x.csv", table([ROW, LONG]), [ROW, LONG]),
        ("x.TSV", b"\xef\xbb\xbf" + table([ROW, LONG], "\t"), [ROW, LONG]),
        ("x.jsonl.gz", gzip.compress(lines(ROW), mtime=0) + gzip.compress(lines(CHAT), mtime=0), [ROW, CHAT]),
        ("x.JSON.GZ", gzip.compress(json.dumps([ROW]).encode(), mtime=0), [ROW]),
        ("x.jsonl.zst", zstd(lines(ROW) * 3), [ROW] * 3),
        ("x.json", b"[]", []),
        *(("x.jsonl", empty, []) for empty in (b"", b"\n \n")),
        *(
            (name, "\n".join([json.dumps(TURNS, indent=indent)] * count).encode(), [{"messages": TURNS}] * count)
            for name, count, indent in product(("x.jsonl", "x.json"), (1, 2), (None, 1))
        ),
    ],
)
def test_files_of_every_kind(tmp_path, name, content, rows):
    (tmp_path / name).write_bytes(content)
    assert [row for row, _ in all_of(tmp_path / name)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, LFS, ": is a Git LFS pointer, not ") for name in ("x.jsonl", "x.parquet")),
        ("x.jsonl.gz", GZIPPED[:-20], ": is not a complete file (Truncated compressed stream"),
        ("x.jsonl.gz", lines(ROW), ": is not a complete file (zlib inflate failed"),
        ("x.jsonl.zst", ZSTD[:-20], ": is not a complete file ("),
        ("x.json", b'{\n "messages": [', ": is not JSON (Expecting value, line 2, column 15); fix the file, or write"),
        ("x.arrow", b"nothing", ": is not a complete file ("),
        ("x.jsonl", b'{"n": 1}\n' * 6 + b'{"n": 1, "te\n{"n": 2}', ", line 7: is not JSON (Unterminated string"),
        ("x.jsonl", b'["q", "a"]\n{"n": 1}', ", line 1: is not an object {…}; fix or delete this line"),
        ("x.jsonl", b'{"n": "\xff"}', ", line 1: is not UTF-8 (invalid start byte at byte 7); fix or delete this line"),
        *((name, '{"n": 1}\n'.encode("utf-16"), ": is in UTF-16; save it as UTF-8") for name in ("x.jsonl", "x.csv")),
        ("x.csv", b"tide;time\nhigh;5\n", ": its columns are separated by ';', not ','; write it with ',', or as"),
        ("x.tsv", b"tide,time\nhigh,5\n", ": its columns are separated by ',', not '\\t'; write it with '\\t', or as"),
        ("x.csv", b"sep=;\r\ntide;time\r\n", ": its columns are separated by ';', not ','; write it"),
        ("x.csv", b"tide,time,time\nhigh,5,6\n", ": has two columns 'time'; rename or remove one"),
        ("x.parquet", in_arrow("x.parquet"), ": has two columns 'tide'; rename or remove one"),
        ("x.arrow", in_arrow("x.arrow"), ": has two columns 'tide'; rename or remove one"),
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
        ("x.csv", 'a,b\nx, y,1\n\n"y\nz",2\nw\n', ["has 3 cells and the header has 2;", ("y\nz", "2"), "has 1 cells"]),
        ("x.tsv", 'a\tb\nx\t"Yes" he said\ny\t"1\nz\t2" two\nw\t4\n', [NOT_DOUBLED] * 3 + [("w", "4")]),
        ("x.tsv", 'a\tb\ny\t"1\nz\t2"\nw\t"3\n4"\n', [NOT_DOUBLED] * 2 + [("w", "3\n4")]),
        ("x.tsv", 'a\n"1\n2"\n', [("1\n2",)]),
        ("x.jsonl", '{"a": 1, \n{"a": 2}\n{"a": 3}\n', [FIRST, (2,), (3,)]),
        ("x.jsonl", '[broken\n{"a": 2}\n{"a": 3}\n', [FIRST, (2,), (3,)]),
        ("x.jsonl", '[1, 2]\n{"a": 2}\n', ["is not an object", (2,)]),
        ("x.jsonl", '["q", "a"]\n["q", "a"]\n', ["is not an object"] * 2),
        ("x.jsonl", '[]\n{"a": 2}\n', ["is not an object", (2,)]),
        ("x.jsonl", '{"a": 1}{"a": 2}\n{"a": 3}\n', [FIRST, (3,)]),
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


def test_a_broken_first_line_does_not_bring_the_file_into_memory(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "cut\n' + lines({"a": "x" * 2**20}) * 96)
    tracemalloc.start()
    sizes = [len(batch) for batch in read_file(tmp_path / "x.jsonl")]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) == 97
    assert most < 64 * 2**20, "the file has 96 MiB; a batch and the buffer have 16 MiB each"
