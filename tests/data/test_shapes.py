"""Rows and files of every kind that is met in practice: what becomes of each of them."""

import csv
import gzip
import io
import json
import logging
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import BadRows, DataConfig, Preference
from tometune.data.conversations import full_messages
from tometune.data.mix import build_mix
from tometune.data.standardise import Standardised, check_malformed, standardise


def role(name, content, **keys):
    return {"role": name, "content": content, **keys}


def chat(*turns):
    return {"messages": list(turns)}


QA = ASK, ANSWER = role("user", "Who mends nets?"), role("assistant", "The net loft.")
Q, A = ASK["content"], ANSWER["content"]
PARTS = role("user", [{"type": "text", "text": "Who mends"}, {"type": "text", "text": " nets?"}])
CHAT = chat(*QA)
SHAREGPT = {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}
ALPACA = {"instruction": Q, "input": "", "output": A}
SYSTEM = role("system", "Talk like a ferryman.")
S = SYSTEM["content"]
GIVEN = {"id": "k1", "type": "function", "function": {"name": "fare", "arguments": '{"zone": 3}'}}
CALL = {**GIVEN, "function": {"name": "fare", "arguments": {"zone": 3}}}
NO_ID = {"type": "function", "function": CALL["function"]}
FARE = {"name": "fare", "description": "Price of a crossing", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FARE}
RESULT, END = role("tool", "4.20", tool_call_id="k1"), role("assistant", "4.20 euros.")
QUESTION = role("user", "What does zone 3 cost?")
CALLED = [QUESTION, role("assistant", "", tool_calls=[CALL]), RESULT, END]
TEXT_AND_CALL = [QUESTION, {**CALLED[1], "content": "I look it up."}, RESULT, END]
TWICE = [KNOT, ROPE, KNOTS, REEF] = [
    *(role("user", "Name a knot."), role("assistant", "A rope.")),
    *(role("user", "A knot."), role("assistant", "Reef.")),
]
SECOND_ONLY = [KNOT, {**ROPE, "trained": False}, KNOTS, REEF]
SHAREGPT_CALL = [
    {"from": "human", "value": QUESTION["content"]},
    {"from": "function_call", "value": '{"name": "fare", "arguments": {"zone": 3}}'},
    {"from": "observation", "value": "4.20"},
    {"from": "gpt", "value": "4.20 euros."},
]
SHAREGPT_CALLED = [QUESTION, {**CALLED[1], "tool_calls": [NO_ID]}, role("tool", "4.20"), END]
BELOW = [role("user", "Where?\n\nIn the loft."), role("assistant", "There.")]
REASONED = [ASK, {**ANSWER, "reasoning_content": "Lofts are dry."}]


def standardised(path: Path | str, cache: Path, **options: object) -> Standardised:
    made = standardise(files(path, **options), "data.base", cache)
    check_malformed(made, "data.base", DataConfig())
    return made


def rows_of(made: Standardised) -> list[tuple[object, object]]:
    return [full_messages(row["messages"], row["extras"]) for row in made.rows]


def called(**turn: object) -> dict[str, object]:
    return chat(QUESTION, {"role": "assistant", **turn}, RESULT, END)


def weighted(key: str, no: object, yes: object) -> dict[str, object]:
    return chat(KNOT, {**ROPE, key: no}, KNOTS, {**REEF, key: yes})


@pytest.mark.parametrize(
    ("rows", "messages", "tools"),
    [
        ([weighted("weight", 0, 1)], [SECOND_ONLY], None),
        ([weighted("train", False, True)], [SECOND_ONLY], None),
        ([weighted("loss", False, True)], [SECOND_ONLY], None),
        ([weighted("loss_weight", 0.0, 1.0)], [SECOND_ONLY], None),
        ([{**called(content=None, tool_calls=[GIVEN]), "tools": [TOOL]}], [CALLED], [TOOL]),
        ([called(content="", tool_calls=[GIVEN])], [CALLED], None),
        ([{**called(tool_calls=[GIVEN]), "tools": [TOOL]}], [CALLED], [TOOL]),
        ([chat(SYSTEM, QUESTION, role("assistant", "", tool_calls=[GIVEN]))], [[SYSTEM, *CALLED[:2]]], None),
        ([called(content="I look it up.", tool_calls=[GIVEN])], [TEXT_AND_CALL], None),
        ([{"conversations": SHAREGPT_CALL, "tools": json.dumps([FARE])}], [SHAREGPT_CALLED], [TOOL]),
        ([{"system": S, **SHAREGPT}] * 2, [[SYSTEM, *QA]] * 2, None),
        ([{"system": S, **CHAT}], [[SYSTEM, *QA]], None),
        ([{"system": "x", **chat(SYSTEM, *QA)}], [[SYSTEM, *QA]], None),  # the conversation's own counts
        ([{"tools": json.dumps([TOOL]), **SHAREGPT}], [[*QA]], [TOOL]),
        ([{**ALPACA, "history": [["Name a knot.", "A rope."]]}], [[KNOT, ROPE, *QA]], None),
        ([chat(*REASONED)], [REASONED], None),
        ([{"instruction": "Where?", "context": "In the loft.", "response": "There.", "category": "x"}], [BELOW], None),
        ([{"instruction": "Where?", "context": "In the loft.", "output": "There."}], [BELOW], None),
        ([ALPACA, ALPACA, CHAT, SHAREGPT], [[*QA]] * 4, None),
        ([chat(role("developer", S), *QA)], [[SYSTEM, *QA]], None),
        ([chat(role("User", Q), role("ASSISTANT", A))], [[*QA]], None),
        ([CHAT, chat(PARTS, role("assistant", [{"type": "text", "text": A}]))], [[*QA]] * 2, None),
        ([{**ALPACA, "input": float("nan")}], [[*QA]], None),
        ([{"input": Q, "output": A}], [[*QA]], None),
        ([{"system": S, "query": Q, "response": A, "history": []}], [[SYSTEM, *QA]], None),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_read_as_they_are_meant(tmp_path, rows, messages, tools, suffix):
    if suffix == "jsonl":
        write_jsonl(tmp_path / "in" / "x.jsonl", rows)
    else:  # a column has one type, so each row has a file
        (tmp_path / "in").mkdir()
        for number, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in" / f"{number}.parquet")
    made = standardised(tmp_path / "in", tmp_path / "cache")
    assert [full for full, _ in rows_of(made)] == messages
    assert [given for _, given in rows_of(made)] == [tools] * len(messages)
    assert (made.dropped, made.mended, made.malformed) == ({}, {}, {})
    assert set(made.unread) <= {"category", "system"}


def test_parquet_gives_no_call_the_arguments_of_others(tmp_path):
    calls = [{"function": {"name": name, "arguments": {name: 1}}} for name in ("fare", "tide")]
    rows = [{**chat(QUESTION, role("assistant", None, tool_calls=[call])), "tools": [TOOL]} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    made = standardised(tmp_path / "x.parquet", tmp_path / "cache")
    for (messages, _), call in zip(rows_of(made), calls, strict=True):
        assert messages[1]["tool_calls"] == [{"type": "function", **call}]


def test_tools_that_text_cannot_hold(tmp_path):
    rows = [{**CHAT, "tools": [{"name": "fare", "since": date(2024, 1, 1)}]}, {**CHAT, "tools": [{"name": "fare"}]}]
    for number, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{number}.parquet")
    write_jsonl(tmp_path / "x.jsonl", [{**CHAT, "tools": [{"name": "fare \ud800"}]}])
    made = standardised(tmp_path, tmp_path / "cache")
    assert {given[0]["function"]["name"] for _, given in rows_of(made)} == {"fare", "fare \ufffd"}
    assert made.malformed == {"no_json_value": {"files": 1}}
    assert made.mended == {"broken_character_replaced": {"files": 1}}


@pytest.mark.parametrize(
    ("row", "dropped", "unread"),
    [
        ({**CHAT, "images": ["quay.png"]}, "image_not_read", {"images"}),
        (chat(role("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ANSWER), "image_not_read", set()),
        (chat(role("user", [{"type": "input_audio", "input_audio": {}}]), ANSWER), "audio_not_read", set()),
        (chat(ASK, {**ANSWER, "weight": 0}), "no_trained_turn", set()),
        (chat({"human": "Who?", "assistant": "Nobody.", "weight": 0}), "no_trained_turn", set()),
        ({**ALPACA, "weight": "0"}, "no_trained_turn", set()),
    ],
)
def test_rows_that_are_dropped_on_purpose_have_a_name(tmp_path, row, dropped, unread):
    made = standardised(write_jsonl(tmp_path / "x.jsonl", [row, CHAT]), tmp_path / "cache")
    assert (made.dropped, set(made.unread), made.malformed) == ({dropped: {"files": 1}}, unread, {})
    assert len(made.rows) == 1


def test_labelled_answers_need_a_setting(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [{**CHAT, "label": False}, {**CHAT, "label": True}])
    with pytest.raises(UserError, match=r"preference_data 2.* set data\.base\.preference=chosen to train on the"):
        standardised(file, tmp_path / "cache")
    made = standardised(file, tmp_path / "cache", preference=Preference.chosen)
    assert (made.dropped, len(made.rows)) == ({"not_chosen": {"files": 1}}, 1)


def write_csv(rows: list[dict[str, object]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(content: bytes) -> bytes:
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(content)
    return target.getvalue().to_pybytes()


MANY = lines(ALPACA) * 999
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
LONG = {**ALPACA, "input": "a cell with, commas and\nlines, " * 9_000}


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.ndjson", lines(ALPACA, CHAT), 2),
        ("LOUD.JSONL", lines(ALPACA), 1),
        ("x.json", lines(ALPACA, SHAREGPT), 2),
        ("x.json", json.dumps(SHAREGPT, indent=2).encode(), 1),
        ("x.jsonl", (json.dumps(SHAREGPT, indent=2) + "\n" + json.dumps(CHAT, indent=2)).encode(), 2),
        ("x.json", json.dumps({"version": 1, "data": [ALPACA, ALPACA]}).encode(), 2),
        ("x.json", json.dumps({"train": [ALPACA], "test": [ALPACA]}, indent=1).encode(), 1),
        ("x.jsonl", json.dumps([ALPACA, ALPACA], indent=1).encode(), 2),
        ("x.jsonl", json.dumps([ALPACA, ALPACA]).encode(), 2),
        ("x.jsonl", lines({"messages": QA, "data": "x"}), 1),
        ("x.csv", write_csv([ALPACA, LONG]), 2),
        ("x.TSV", b"\xef\xbb\xbf" + write_csv([ALPACA, LONG], "\t"), 2),
        ("x.csv", write_csv([{"messages": json.dumps(QA)}]), 1),
        ("x.jsonl.gz", gzip.compress(lines(ALPACA), mtime=0) + gzip.compress(lines(CHAT), mtime=0), 2),
        ("x.JSON.GZ", gzip.compress(json.dumps([ALPACA]).encode(), mtime=0), 1),
        ("x.csv.zst", packed(write_csv([ALPACA])), 1),
        ("x.jsonl.zst", packed(lines(ALPACA) * 3), 3),
        ("x.json", b"[]", 0),
        ("x.jsonl", b"", 0),
    ],
)
def test_files_of_every_kind(tmp_path, name, content, rows):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    made = standardised(tmp_path / "in", tmp_path / "cache")
    assert (made.read, len(made.rows)) == (rows, rows)
    assert all(messages[-1] == ANSWER for messages, _ in rows_of(made))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", LFS, "is a Git LFS pointer, not "),
        ("x.jsonl", LFS, "is a Git LFS pointer, not "),
        ("x.jsonl.gz", gzip.compress(MANY, mtime=0)[:-20], "is not a complete file (Truncated compressed stream"),
        ("x.jsonl.gz", lines(ALPACA), "is not a complete file (zlib inflate failed"),
        ("x.jsonl.zst", packed(MANY)[:-20], "is not a complete file ("),
        ("x.json", b'{\n "messages": [', "is not JSON (Expecting value, line 2, column 15); fix the file, or write"),
        ("x.arrow", b"nothing", "is not a complete file ("),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert error_of(standardised, tmp_path / name, tmp_path / "cache").startswith(f"{tmp_path / name}: {message}")


def test_rows_of_a_table_with_too_many_cells(tmp_path):
    (tmp_path / "x.csv").write_text('question,answer\nq,a\nWho, me?,a\n\n"two\nlines",a\nq\n')
    made = standardised(tmp_path / "x.csv", tmp_path / "cache")
    assert (made.read, len(made.rows)) == (4, 2)
    assert made.malformed == {"wrong_number_of_cells": {"files": 2}}
    assert [place.rpartition(", ")[2] for place, _ in made.bad] == ["line 3", "line 7"]


TRAIN = "data/train-00000-of-00002.jsonl data/train-00001-of-00002.jsonl"


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ("train.jsonl valid.jsonl test.jsonl", "train.jsonl"),
        (f"{TRAIN} data/test-00000-of-00001.jsonl", TRAIN),
        ("one.jsonl two.jsonl dev.csv", "one.jsonl two.jsonl"),
        ("test.jsonl", "test.jsonl"),
        ("latest.jsonl contest.jsonl trainval.jsonl", "latest.jsonl contest.jsonl trainval.jsonl"),
        ("a.jsonl holdout.jsonl held_out/b.jsonl testset.jsonl test2.jsonl validate.jsonl", "a.jsonl"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/**/*.*"])
def test_of_a_folder_of_splits_only_train_is_read(tmp_path, caplog, names, read, pattern):
    caplog.set_level(logging.INFO)
    for name in names.split():
        write_jsonl(tmp_path / "in" / name, [{**ALPACA, "source": name}])
    made = standardised(f"{tmp_path}/in{pattern}", tmp_path / "cache")
    assert set(made.names) == set(read.split())
    others = sorted(set(names.split()) - set(made.names))
    told = [text for text in caplog.messages if "only train is read" in text]
    assert len(told) == bool(others)
    assert not others or f"not {', '.join(others)}; name a file to read it" in told[0]


def test_folders_of_save_to_disk(tmp_path, caplog):
    one = datasets.Dataset.from_list([CHAT] * 3)
    one.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    datasets.load_from_disk(tmp_path / "one").map(lambda row: {**row, "more": 1})
    assert list((tmp_path / "one").glob("cache-*.arrow"))
    (tmp_path / "one" / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    for folder in ("one", "both", "one/*"):
        made = standardised(tmp_path / folder, tmp_path / "cache")
        assert [messages for messages, _ in rows_of(made)] == [[*QA]] * 3


TEN_KINDS = {
    "not_json": b'{"messages": [',
    "not_utf8": b'{"instruction": "caf\xe9", "output": "x"}',
    "not_an_object": b"[1, 2]",
    "nested_too_deeply": b'{"messages": ' + b"[" * 100_000,
    "unknown_columns": b'{"title": "Tides", "page": 3}',
    "unknown_role": b'{"messages": [{"role": "narrator", "content": "x"}]}',
    "no_text": b'{"messages": [{"role": "user", "txet": "x"}]}',
    "not_a_text": b'{"instruction": true, "output": "x"}',
    "not_a_list_of_turns": b'{"messages": "x"}',
    "bad_tool_call": b'{"messages": [{"role": "assistant", "tool_calls": ["fare(3)"]}]}',
}


def test_one_percent_of_broken_rows_of_ten_kinds(tmp_path):
    """The mix is made and has ten counts; with `data.bad_rows=stop` there is one message with the first three."""
    good = [json.dumps(conversation(number)).encode() for number in range(2_970)]
    content = [
        line for start, bad in enumerate(TEN_KINDS.values()) for line in (*good[start * 297 :][:297], bad, bad, bad)
    ]
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join(content))
    config = DataConfig(rows=2_970, base=files(file))
    mix = build_mix(config, 0, tmp_path / "cache")
    assert mix.facts["base"]["malformed"] == {reason: {"files": 3} for reason in TEN_KINDS}
    assert (mix.facts["base"]["read"], len(mix.row_ids)) == (3_000, 2_970)
    config.bad_rows = BadRows.stop
    text = error_of(build_mix, config, 0, tmp_path / "cache")
    assert text.startswith("data.base: 30 of 3,000 rows cannot be read (not_json 3, not_utf8 3, ")
    assert text.endswith(
        f"set data.bad_rows=drop to leave them out: {file}, line 298 and line 299 and line 300: is not JSON (Expecting "
        "value, column 15); fix or delete this line"
    )
