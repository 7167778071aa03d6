"""Defects of real files: an error of one line that names the place, or a fix that is counted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import BadRows, DataConfig
from tometune.data.standardise import check_malformed, standardise


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def error_of(path, cache):
    with pytest.raises(UserError) as caught:
        check_malformed(standardise(files(path), "data.pool", cache), "data.pool", DataConfig(bad_rows=BadRows.stop))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_may_differ_in_schema(tmp_path):
    shards = tmp_path / "shards"
    write_parquet(shards / "a.parquet", [conversation(1, source="a", score=1.0)])
    write_parquet(shards / "b.parquet", [conversation(2, dataset="b")])
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_parquet(shards / "c.parquet", [{"messages": turns, "score": "high"}])
    write_jsonl(shards / "d.jsonl", [{"instruction": "i", "output": "o"}])
    made = standardise(files(shards), "data.pool", tmp_path / "cache")
    assert (made.names, len(made.rows)) == (["a", "b", "files"], 4)
    write_parquet(shards / "e.parquet", [{"text": "x"}])
    error = error_of(shards, tmp_path / "cache")
    assert f": {shards}/e.parquet, row 0 (the first is 0): no columns with turns, nor with a question and " in error
    assert error.endswith("among text; set 'data.pool.columns={user: text, assistant: ANSWERS}'")


@pytest.mark.nightly
def test_a_row_of_20_mb(tmp_path):
    long = conversation("word " * 4_000_000)  # longer than `BATCH_BYTES`
    rows = [conversation(1), long, conversation(2)]
    one = standardise(files(write_parquet(tmp_path / "x.parquet", rows)), "data.pool", tmp_path / "cache")
    other = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.pool", tmp_path / "cache")
    assert one.rows["key"][:] == other.rows["key"][:]
    assert len(one.rows[1]["messages"][0]["content"]) > 20_000_000


@pytest.mark.parametrize("damage", ["cut", "middle"])
def test_an_incomplete_parquet_file(tmp_path, damage):
    file = write_parquet(tmp_path / "x.parquet", [conversation(n) for n in range(20_000)], row_group_size=2_000)
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] if damage == "cut" else content[:half] + bytes(5_000) + content[half + 5_000 :])
    assert error_of(file, tmp_path / "cache").startswith(f"{file}: is not a complete parquet file (")
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_a_row_of_another_type_in_the_middle_of_a_file(tmp_path):
    """A worker process reads it; the error still has the right line."""
    good = [conversation(n) for n in range(17_000)]
    file = write_jsonl(tmp_path / "x.jsonl", [*good, {"conversations": 3}, *good[:2_000]])
    message = "the conversation in 'conversations' is of type int; make it a list of turns"
    assert error_of(file, tmp_path / "cache").endswith(f": {file}, line 17001: {message}")


def test_parquet_text_that_is_not_utf8(tmp_path):
    texts = pa.array([b"q", b"a\xff", b"q", b"b"]).view(pa.string())
    turns = pa.StructArray.from_arrays([pa.array(["human", "gpt"] * 2), texts], names=["from", "value"])
    labels = pa.array([b"d\xfe", b"d"]).view(pa.string())
    table = pa.table({"conversations": pa.ListArray.from_arrays([0, 2, 4], turns), "dataset": labels})
    pq.write_table(table, tmp_path / "x.parquet")
    made = standardise(files(tmp_path / "x.parquet"), "data.pool", tmp_path / "cache")
    assert made.mended == {"broken_character_replaced": {"d\N{REPLACEMENT CHARACTER}": 1}}
    assert made.rows[0]["messages"][1]["content"] == "a\N{REPLACEMENT CHARACTER}"
