"""Rows of every kind that is met in practice: what becomes of each of them."""

import json
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import BadRows, DataConfig, Preference
from tometune.data import parallel
from tometune.data.conversations import full_messages
from tometune.data.mix import build_mix
from tometune.data.standardise import Standardised, check_malformed, standardise


def role(name, content, **keys):
    return {"role": name, "content": content, **keys}


def chat(*turns):
    return {"messages": list(turns)}


QA = ASK, ANSWER = role("user", "Who mends nets?"), role("assistant", "The net loft.")
Q, A = ASK["content"], ANSWER["content"]
CHAT, PARTS = chat(*QA), [role(turn["role"], [{"type": "text", "text": turn["content"]}]) for turn in QA]
SHAREGPT = {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}
ALPACA = {"instruction": Q, "input": "", "output": A}
SYSTEM = role("system", "Talk like a ferryman.")
GIVEN = {"id": "k1", "type": "function", "function": {"name": "fare", "arguments": '{"zone": 3}'}}
CALL = {**GIVEN, "function": {"name": "fare", "arguments": {"zone": 3}}}
FARE = {"name": "fare", "description": "Price of a crossing", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FARE}
QUESTION, RESULT = role("user", "Zone 3?"), role("tool", "4.20", tool_call_id="k1")
END = role("assistant", "4.20 euros.")
CALLED = [QUESTION, role("assistant", "", tool_calls=[CALL]), RESULT, END]
BY_ROLE = [role("function_call", '{"name": "fare", "arguments": {"zone": 3}}'), role("observation", "4.20")]
NO_ID = [role("assistant", "", tool_calls=[{key: CALL[key] for key in ("type", "function")}]), role("tool", "4.20")]


def standardised(path: Path | str, cache: Path, **options: object) -> Standardised:
    made = standardise(files(path, **options), "data.base", cache)
    check_malformed(made, "data.base", DataConfig())
    return made


def rows_of(made: Standardised) -> list[tuple[object, object]]:
    return [full_messages(row["messages"], row["extras"]) for row in made.rows]


@pytest.mark.parametrize(
    ("rows", "messages", "tools"),
    [
        ([chat(*QA, {**ANSWER, "weight": 0})], [[*QA, {**ANSWER, "trained": False}]], None),
        (
            [{**chat(QUESTION, role("assistant", None, tool_calls=[GIVEN]), RESULT, END), "tools": [TOOL]}],
            [CALLED],
            [TOOL],
        ),
        ([{**chat(QUESTION, *BY_ROLE, END), "tools": json.dumps([FARE])}], [[QUESTION, *NO_ID, END]], [TOOL]),
        ([{"system": SYSTEM["content"], **SHAREGPT}] * 2, [[SYSTEM, *QA]] * 2, None),
        ([{**ALPACA, "history": [[Q, A]]}], [[*QA] * 2], None),
        ([chat(ASK, {**ANSWER, "reasoning_content": "r"})], [[ASK, {**ANSWER, "reasoning_content": "r"}]], None),
        ([CHAT, chat(*PARTS), ALPACA, SHAREGPT], [[*QA]] * 4, None),
        ([{**ALPACA, "input": float("nan")}], [[*QA]], None),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_read_as_they_are_meant(tmp_path, rows, messages, tools, suffix):
    """From both kinds of files to rows with everything that they hold; test_formats.py has more shapes."""
    if suffix == "jsonl":
        write_jsonl(tmp_path / "in" / "x.jsonl", rows)
    else:  # a column has one type, so each row has a file
        (tmp_path / "in").mkdir()
        for number, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in" / f"{number}.parquet")
    made = standardised(tmp_path / "in", tmp_path / "cache")
    assert rows_of(made) == [(full, tools) for full in messages]
    assert (made.dropped, made.mended, made.malformed, made.unread) == ({}, {}, {}, {})


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


def test_rows_that_are_dropped_on_purpose_have_a_name(tmp_path):
    rows = [{**CHAT, "images": ["quay.png"]}, {**ALPACA, "weight": "0"}, chat(ASK, {**ANSWER, "weight": 0}), CHAT]
    made = standardised(write_jsonl(tmp_path / "x.jsonl", rows), tmp_path / "cache")
    assert made.dropped == {"image_not_read": {"files": 1}, "no_trained_turn": {"files": 2}}
    assert (made.unread, made.malformed, len(made.rows)) == ({"images": {"files": 1}}, {}, 1)


def test_labelled_answers_need_a_setting(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [{**CHAT, "label": False}, {**CHAT, "label": True}])
    with pytest.raises(UserError, match=r"preference_data 2.* set data\.base\.preference=chosen to train on the"):
        standardised(file, tmp_path / "cache")
    made = standardised(file, tmp_path / "cache", preference=Preference.chosen)
    assert (made.dropped, len(made.rows)) == ({"not_chosen": {"files": 1}}, 1)


def test_folders_of_save_to_disk(tmp_path):
    one = datasets.Dataset.from_list([CHAT] * 3)
    datasets.Dataset.from_list([CHAT] * 8).save_to_disk(tmp_path / "one", num_shards=4)
    one.save_to_disk(tmp_path / "one", num_shards=2)  # into the same folder, where the first shards stay
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    for name in (None, str(tmp_path / "one" / "mapped.arrow")):
        datasets.load_from_disk(tmp_path / "one").map(lambda row: {**row, "more": 1}, cache_file_name=name)
    assert len(list((tmp_path / "one").glob("*.arrow"))) == 2 + 4 + 2
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


def test_one_percent_of_broken_rows_of_ten_kinds(tmp_path, monkeypatch):
    """The mix is made and has ten counts; with `data.bad_rows=stop` there is one message with the first three."""
    monkeypatch.setattr(parallel, "ALONE", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)  # errors come from worker processes
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
