"""Sources as messages: keys, counts, the cache; defects of real files as errors of one line or counted fixes."""

import logging
from contextlib import nullcontext
from hashlib import blake2b

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import BadRows, DataConfig, RowFormat
from tometune.data.standardise import check_malformed, standardise, text_key

ALPACA = {"instruction": "Question 1", "input": "", "output": "answer\n1"}


def turn(role, text):
    return {"from": role, "value": text}


def test_rows_keys_and_counts_by_reason_and_source(tmp_path):
    odd = {"conversations": [None, turn("human", "q"), turn("gpt", "a"), turn("human", "?")], "dataset": "d"}
    rows = [
        conversation(1, source="s"),
        conversation(1),
        odd,
        {"conversations": None, "source": "s"},
        {"conversations": [turn("human", "q")], "source": "t"},
        conversation(2, source="s \ud800"),
    ]
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.base", tmp_path / "cache")
    assert made.rows["source"][:] == ["s", "files", "d", "s \ufffd"]
    assert made.rows[2]["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert made.rows[0]["key"] == blake2b(b"question 1 answer 1", digest_size=16).digest()
    assert made.read == 6
    assert made.dropped == {"no_assistant_turn": {"s": 1, "t": 1}}
    assert made.mended == {"empty_turn_removed": {"d": 1}, "trailing_turn_cut": {"d": 1}}


def test_a_text_has_one_key_in_every_format(tmp_path):
    one = standardise(files(write_jsonl(tmp_path / "a.jsonl", [conversation(1)])), "k", tmp_path / "cache")
    two = standardise(files(write_jsonl(tmp_path / "b.jsonl", [ALPACA])), "k", tmp_path / "cache")
    assert one.rows[0]["key"] == two.rows[0]["key"] == text_key(["question 1 ANSWER 1"])
    assert one.fingerprint != two.fingerprint


def test_a_source_is_cached_until_its_content_or_format_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file, cache = write_jsonl(tmp_path / "x.jsonl", [conversation(1)]), tmp_path / "cache"
    first = standardise(files(file), "k", cache)
    assert standardise(files(file), "k", cache).fingerprint == first.fingerprint
    assert len(caplog.messages) == 1
    standardise(files(file, format=RowFormat.sharegpt), "k", cache)
    write_jsonl(file, [conversation(2)])
    assert standardise(files(file), "k", cache).rows[0]["messages"][0]["content"] == "question 2"
    assert len(caplog.messages) == 3


@pytest.mark.nightly
def test_a_row_of_20_mb(tmp_path):
    long = conversation("word " * 4_000_000)  # longer than `BATCH_BYTES`
    rows = [conversation(1), long, conversation(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    one = standardise(files(tmp_path / "x.parquet"), "data.pool", tmp_path / "cache")
    other = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.pool", tmp_path / "cache")
    assert one.rows["key"][:] == other.rows["key"][:]
    assert len(one.rows[1]["messages"][0]["content"]) > 20_000_000


def test_a_bad_row_is_counted_and_an_error_names_it(tmp_path):
    bad = {"conversations": [turn("humn", "q")], "dataset": "d"}
    file = write_jsonl(tmp_path / "x.jsonl", [conversation(1), conversation(2), bad, [1], bad])
    made = standardise(files(file), "data.base", tmp_path / "cache")
    assert (made.read, len(made.rows)) == (5, 2)
    assert made.malformed == {"unknown_role": {"d": 2}, "not_an_object": {"files": 1}}
    check_malformed(made, "data.base", DataConfig())
    error = error_of(check_malformed, made, "data.base", DataConfig(bad_rows=BadRows.stop))
    start, *shown = error.split(" | ")
    assert start.startswith(
        "data.base: 3 of 5 rows cannot be read (unknown_role 2, not_an_object 1); fix them, or set data.bad_rows=drop "
        f"to leave them out: {file}, line 3 and line 5: unknown role 'humn'; did you mean human? use one of"
    )
    assert shown == [f"{file}, line 4: is not an object {{…}}; fix or delete this line"]


@pytest.mark.parametrize(
    ("rows", "bad", "share", "stops"),
    [
        (100, 5, 0.05, None),
        (100, 6, 0.05, "raise data.max_bad_share=0.05"),
        (100, 6, 0.06, None),
        (100, 1, 0, "raise data.max_bad_share=0"),
        (99, 50, 0.05, None),
        (3, 3, 0.05, "no row is left"),
    ],
)
def test_too_many_bad_rows_stop(tmp_path, rows, bad, share, stops):
    texts = [*({"text": str(number)} for number in range(bad)), *(conversation(n) for n in range(rows - bad))]
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", texts)), "data.base", tmp_path / "cache")
    with pytest.raises(UserError, match=stops) if stops else nullcontext():
        check_malformed(made, "data.base", DataConfig(max_bad_share=share))


def test_columns_and_keys_that_are_not_read_are_counted(tmp_path):
    turns = [{"from": "human", "value": "q", "id": 7, "note": None}, {"from": "gpt", "value": "a", "id": 8}]
    rows = [{"conversations": turns, "images": [], "topic": "t", "source": "s"}, conversation(1, topic="", lang="en")]
    rows.append({"conversations": turns[:1], "score": 1.5, "source": "s", "dataset": "d", "topic": "t"})
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "k", tmp_path / "cache")
    assert made.unread == {"topic": {"s": 2}, "turn.id": {"s": 2}, "lang": {"files": 1}, "dataset": {"s": 1}}
    assert made.dropped == {"no_assistant_turn": {"s": 1}}


def test_a_mapped_column_and_an_address_name_no_source(tmp_path):
    rows = [{"source": f"Word {n}", "target": "Wort", "dataset": "d"} for n in range(2)]
    rows += [{**conversation(n), "source": f"https://x/{n}", "score": "4.5"} for n in range(2)]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    made = standardise(files(file), "k", tmp_path / "cache")
    assert (made.names, made.unread) == (["files"], {"source": {"files": 2}})
    assert made.scores.tolist() == [4.5, 4.5]
    mapped = standardise(files(file, columns={"user": "source", "assistant": "target"}), "k", tmp_path / "cache")
    assert mapped.names == ["d"]


def test_parquet_text_that_is_not_utf8(tmp_path):
    texts = pa.array([b"q", b"a\xff", b"q", b"b"]).view(pa.string())
    turns = pa.StructArray.from_arrays([pa.array(["human", "gpt"] * 2), texts], names=["from", "value"])
    labels = pa.array([b"d\xfe", b"d"]).view(pa.string())
    table = pa.table({"conversations": pa.ListArray.from_arrays([0, 2, 4], turns), "dataset": labels})
    pq.write_table(table, tmp_path / "x.parquet")
    made = standardise(files(tmp_path / "x.parquet"), "data.pool", tmp_path / "cache")
    assert made.mended == {"broken_character_replaced": {"d\N{REPLACEMENT CHARACTER}": 1}}
    assert made.rows[0]["messages"][1]["content"] == "a\N{REPLACEMENT CHARACTER}"
