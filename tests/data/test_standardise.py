"""From rows of every kind to messages: what becomes of each, keys, counts by reason and source, and the cache."""

import json
import logging
from contextlib import nullcontext
from datetime import date
from hashlib import blake2b
from itertools import pairwise

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import BadRows, DataConfig, Preference, RowFormat
from tometune.data import parallel
from tometune.data.conversations import compared_texts, fix_conversation, full_messages, normalised
from tometune.data.mix import build_mix
from tometune.data.standardise import check_malformed, standardise
from tometune.data.turns import Turn

S, U, A, T = ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
OTHER = {"type": "function", "function": {"name": "g", "arguments": {}}}
C, D, BOTH = {"tool_calls": [CALL]}, {"tool_calls": [OTHER]}, {"tool_calls": [CALL, OTHER]}
THOUGHT, CONTEXT, TWO = {"reasoning": "r"}, {"trained": False}, ("user", "u\n\nu")
LONE, REPLACED = {"reasoning": "\ud83d"}, {"reasoning": "\ufffd"}


@pytest.mark.parametrize(
    ("turns", "fixed", "reasons"),
    [
        ([S, U, A], [S, U, A], set()),
        ([U, A, T, T, A], [U, A, T, T, A], set()),
        ([("user", "  f\n"), ("assistant", "\ta\n")], [("user", "  f\n"), ("assistant", "\ta\n")], set()),
        ([("system", ""), U, A], [U, A], set()),
        ([S, S, U, A], [("system", "s\n\ns"), U, A], {"same_role_joined"}),
        ([U, A, S, U, A], [U, A, U, A], {"late_system_turn_removed"}),
        ([A, S, U, A], [S, U, A], {"leading_assistant_removed"}),
        ([T, U, A], [U, A], {"leading_tool_removed"}),
        ([U, U, A, A], [TWO, ("assistant", "a\n\na")], {"same_role_joined"}),
        ([U, ("assistant", " \n"), U, A], [TWO, A], {"empty_turn_removed", "same_role_joined"}),
        ([U, ("", ""), A], [U, A], {"empty_turn_removed"}),
        ([U, A, T, U], [U, A], {"trailing_turn_cut"}),
        ([U, ("assistant", "a \ud83d b")], [U, ("assistant", "a \ufffd b")], {"broken_character_replaced"}),
        ([U, ("assistant", " ", C), T, A], [U, ("assistant", " ", C), T, A], set()),
        ([U, A, ("assistant", "", C)], [U, ("assistant", "a", C)], {"same_role_joined"}),
        ([U, ("assistant", "", C), ("assistant", "", D)], [U, ("assistant", "", BOTH)], {"same_role_joined"}),
        ([U, ("assistant", "", C), A], [U, ("assistant", "", C), A], set()),  # the text comes after the call
        ([U, A, ("assistant", "b", THOUGHT)], [U, A, ("assistant", "b", THOUGHT)], set()),
        ([U, ("assistant", "", THOUGHT), U, A], [TWO, A], {"reasoning_without_answer_removed", "same_role_joined"}),
        ([U, ("assistant", "a", CONTEXT), A], [U, ("assistant", "a", CONTEXT), A], set()),
        ([U, ("assistant", "a", CONTEXT)], [], {"no_trained_turn"}),
        ([U, ("assistant", "a", LONE)], [U, ("assistant", "a", REPLACED)], {"broken_character_replaced"}),
        ([S, A], [], {"no_assistant_turn"}),
        ([], [], {"no_assistant_turn"}),
    ],
)
def test_policies(turns, fixed, reasons):
    assert fix_conversation([Turn(*turn) for turn in turns]) == ([Turn(*turn) for turn in fixed], reasons)


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@given(st.lists(st.builds(Turn, ROLES, st.sampled_from(["", " ", "x", "y"]), st.none())))
def test_fixed_conversations_can_be_rendered_and_trained_on(turns):
    fixed, reasons = fix_conversation(turns)
    roles = [turn.role for turn in fixed]
    assert bool(fixed) != ("no_assistant_turn" in reasons)
    if fixed:
        spoken = roles[1:] if roles[0] == "system" else roles
        assert (spoken[0], roles[-1]) == ("user", "assistant")
        assert "system" not in spoken
        assert all(a != b or a == "tool" for a, b in pairwise(roles))
        assert all(turn.text.strip() for turn in fixed)
        assert fix_conversation(fixed) == (fixed, set())
    if not reasons:
        assert fixed == [turn for turn in turns if turn.role != "system" or turn.text.strip()]


def test_rows_are_compared_by_everything_that_is_said():
    plain = [Turn(*U), Turn(*A)]
    variants = [(plain, None), (plain, [{"function": {"name": "f"}}])]
    variants += [([Turn(*U), Turn("assistant", "a", extra)], None) for extra in (C, THOUGHT, D)]
    assert len({normalised(compared_texts(*variant)) for variant in variants}) == len(variants)
    context = [Turn(*U), Turn("assistant", "a", CONTEXT)]
    assert normalised(compared_texts(context, None)) == normalised(compared_texts(plain, None)) == "u a"
    assert normalised([" Straße\n", "ist\t\tLANG "]) == "strasse ist lang"


def role(who, content, **keys):
    return {"role": who, "content": content, **keys}


def chat(*turns):
    return {"messages": list(turns)}


QA = ASK, ANSWER = role("user", "Who mends nets?"), role("assistant", "The net loft.")
ALPACA = {"instruction": ASK["content"], "input": "", "output": ANSWER["content"]}
SHAREGPT = {"conversations": [{"from": "human", "value": ASK["content"]}, {"from": "gpt", "value": ANSWER["content"]}]}
CHAT, PARTS = chat(*QA), [role(turn["role"], [{"type": "text", "text": turn["content"]}]) for turn in QA]
SYSTEM = role("system", "Talk like a ferryman.")
GIVEN = {"id": "k1", "type": "function", "function": {"name": "fare", "arguments": '{"zone": 3}'}}
CALLED = [{**GIVEN, "function": {"name": "fare", "arguments": {"zone": 3}}}]
FARE = {"name": "fare", "description": "Price of a crossing", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FARE}]
QUESTION, RESULT = role("user", "Zone 3?"), role("tool", "4.20", name="fare", tool_call_id="k1")
END = role("assistant", "4.20 euros.")
BY_ROLE = [role("function_call", '{"name": "fare", "arguments": {"zone": 3}}'), role("observation", "4.20")]
NO_ID = [{key: CALLED[0][key] for key in ("type", "function")}]
WITH_CALL = {**chat(QUESTION, role("assistant", None, tool_calls=[GIVEN]), RESULT, END), "tools": TOOLS}
MEANT = [
    (chat(*QA, {**ANSWER, "weight": 0}), [*QA, {**ANSWER, "trained": False}], None),
    (WITH_CALL, [QUESTION, role("assistant", "", tool_calls=CALLED), RESULT, END], TOOLS),
    (
        {**chat(QUESTION, *BY_ROLE, END), "tools": json.dumps([FARE])},
        [QUESTION, role("assistant", "", tool_calls=NO_ID), role("tool", "4.20"), END],
        TOOLS,
    ),
    ({"system": SYSTEM["content"], **SHAREGPT}, [SYSTEM, *QA], None),
    ({**ALPACA, "history": [[ASK["content"], ANSWER["content"]]]}, [*QA] * 2, None),
    (chat(ASK, {**ANSWER, "reasoning_content": "r"}), [ASK, {**ANSWER, "reasoning_content": "r"}], None),
    *((row, [*QA], None) for row in (CHAT, chat(*PARTS), ALPACA, SHAREGPT, {**ALPACA, "input": float("nan")})),
]


def rows_of(made):
    return [full_messages(row["messages"], row["extras"]) for row in made.rows]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_read_as_they_are_meant(tmp_path, suffix):
    """Also rows of several shapes in one file; test_formats.py has more shapes."""
    rows = [row for row, _, _ in MEANT]
    if suffix == "jsonl":
        write_jsonl(tmp_path / "in" / "x.jsonl", rows)
    else:  # a column has one type, so each row has a file
        (tmp_path / "in").mkdir()
        for number, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in" / f"{number}.parquet")
    made = standardise(files(tmp_path / "in"), "data.base", tmp_path / "cache")
    assert sorted(map(json.dumps, rows_of(made))) == sorted(json.dumps([full, tools]) for _, full, tools in MEANT)
    assert (made.dropped, made.mended, made.malformed, made.unread) == ({}, {}, {}, {})


def test_parquet_gives_no_call_the_arguments_of_others(tmp_path):
    calls = [{"function": {"name": name, "arguments": {name: 1}}} for name in ("fare", "tide")]
    rows = [{**chat(QUESTION, role("assistant", None, tool_calls=[call])), "tools": TOOLS} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    made = standardise(files(tmp_path / "x.parquet"), "k", tmp_path / "cache")
    for (messages, _), call in zip(rows_of(made), calls, strict=True):
        assert messages[1]["tool_calls"] == [{"type": "function", **call}]


def test_tools_that_text_cannot_hold(tmp_path):
    rows = [{**CHAT, "tools": [{"name": "fare", "since": date(2024, 1, 1)}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    write_jsonl(tmp_path / "x.jsonl", [{**CHAT, "tools": [{"name": "fare \ud800"}]}])
    made = standardise(files(tmp_path), "k", tmp_path / "cache")
    assert [given[0]["function"]["name"] for _, given in rows_of(made)] == ["fare \ufffd"]
    assert made.malformed == {"no_json_value": {"files": 1}}
    assert made.mended == {"broken_character_replaced": {"files": 1}}


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
        made = standardise(files(tmp_path / folder), "k", tmp_path / "cache")
        assert [messages for messages, _ in rows_of(made)] == [[*QA]] * 3


def test_rows_keys_and_counts_by_reason_and_source(tmp_path):
    alpaca = {"instruction": "Question 1", "input": "", "output": "answer\n1"}
    turns = [role("user", "q", id=7, note=None), role("assistant", "a", id=8)]
    rows = [
        conversation(1, source="s"),
        alpaca,
        {**chat(None, *turns, role("user", "?")), "dataset": "d", "topic": "t", "lang": "en"},
        {"conversations": None, "source": "s"},
        {**chat(turns[0]), "source": "t", "dataset": "d", "topic": "t", "score": 1.5},
        conversation(2, source="s \ud800", topic=""),
        {**CHAT, "images": ["quay.png"]},
        {**ALPACA, "weight": "0"},
        chat(ASK, {**ANSWER, "weight": 0}),
        {**chat(role("narrator", "x")), "dataset": "d"},
    ]
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.base", tmp_path / "cache")
    assert made.rows["source"][:] == ["s", "files", "d", "s \ufffd"]
    assert made.rows[2]["messages"] == [role("user", "q"), role("assistant", "a")]
    assert made.rows["key"][:2] == [blake2b(b"question 1 answer 1", digest_size=16).digest()] * 2, "in any format"
    assert (made.read, made.malformed) == (10, {"unknown_role": {"d": 1}})
    assert made.dropped == {
        "no_assistant_turn": {"s": 1, "t": 1},
        "image_not_read": {"files": 1},
        "no_trained_turn": {"files": 2},
    }
    assert made.mended == {"empty_turn_removed": {"d": 1}, "trailing_turn_cut": {"d": 1}}
    topic, dataset, images = {"d": 1, "t": 1}, {"t": 1}, {"files": 1}
    unread = {"topic": topic, "turn.id": topic, "lang": {"d": 1}, "dataset": dataset, "images": images}
    assert made.unread == unread


def test_a_mapped_column_and_an_address_name_no_source(tmp_path):
    rows = [{"source": f"Word {n}", "target": "Wort", "dataset": "d"} for n in range(2)]
    rows += [{**conversation(n), "source": f"https://x/{n}", "score": "4.5"} for n in range(2)]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    made = standardise(files(file), "k", tmp_path / "cache")
    assert (made.names, made.unread, made.scores.tolist()) == (["files"], {"source": {"files": 2}}, [4.5, 4.5])
    mapped = standardise(files(file, columns={"user": "source", "assistant": "target"}), "k", tmp_path / "cache")
    assert mapped.names == ["d"]


def test_a_source_is_cached_until_its_content_or_a_setting_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file, cache = write_jsonl(tmp_path / "x.jsonl", [{**CHAT, "label": label} for label in (False, True)]), tmp_path
    settings = [{}, {"preference": Preference.chosen}, {"format": RowFormat.messages}, {"score": "label"}]
    settings += [{"columns": {"messages": "messages"}}]
    for count, options in enumerate(settings, start=1):
        made = [standardise(files(file, **options), "k", cache) for _ in range(2)]
        assert made[0].fingerprint == made[1].fingerprint
        assert len(caplog.messages) == count
        if "preference" in options:
            assert (made[0].dropped, len(made[0].rows)) == ({"not_chosen": {"files": 1}}, 1)
        elif "score" not in options:
            assert made[0].malformed == {"preference_data": {"files": 2}}
    write_jsonl(file, [conversation(2)])
    assert standardise(files(file), "k", cache).rows[0]["messages"][0]["content"] == "question 2"


def test_parquet_text_that_is_not_utf8(tmp_path):
    texts = pa.array([b"q", b"a\xff", b"q", b"b"]).view(pa.string())
    turns = pa.StructArray.from_arrays([pa.array(["human", "gpt"] * 2), texts], names=["from", "value"])
    labels = pa.array([b"d\xfe", b"d"]).view(pa.string())
    table = pa.table({"conversations": pa.ListArray.from_arrays([0, 2, 4], turns), "dataset": labels})
    pq.write_table(table, tmp_path / "x.parquet")
    made = standardise(files(tmp_path / "x.parquet"), "data.pool", tmp_path / "cache")
    assert made.mended == {"broken_character_replaced": {"d\N{REPLACEMENT CHARACTER}": 1}}
    assert made.rows[0]["messages"][1]["content"] == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.nightly
def test_a_row_of_20_mb(tmp_path):
    rows = [conversation(1), conversation("word " * 4_000_000), conversation(2)]  # longer than `BATCH_BYTES`
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    one = standardise(files(tmp_path / "x.parquet"), "data.pool", tmp_path / "cache")
    other = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.pool", tmp_path / "cache")
    assert one.rows["key"][:] == other.rows["key"][:]
    assert len(one.rows[1]["messages"][0]["content"]) > 20_000_000


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


def test_a_cached_error_names_the_key_and_the_file_of_the_source_that_reads_it(tmp_path):
    rows = {"a": [conversation(1)], "b": [{"prompt": "x", "chosen": "y", "rejected": "z"}, {"a": "x", "b": "y"}]}
    for place, key in (("one", "data.pool"), ("other", "data.base")):
        for name, content in rows.items():
            write_jsonl(tmp_path / place / f"{name}{place}.jsonl", content)
        made = standardise(files(tmp_path / place), key, tmp_path / "cache")
        said = error_of(check_malformed, made, key, DataConfig(bad_rows=BadRows.stop))
        assert f": {tmp_path}/{place}/b{place}.jsonl, line 1: " in said
        assert f"set {key}.preference=chosen to train" in said
        assert f"set '{key}.columns={{user: a, assistant: b}}'" in said
    assert len([*(tmp_path / "cache").rglob("counts.json")]) == 1


@pytest.mark.parametrize(
    ("rows", "bad", "share", "stops"),
    [
        (100, 5, 0.05, None),
        (100, 6, 0.05, "raise data.max_bad_share=0.05"),
        (100, 6, 0.06, None),
        (100, 1, 0, "raise data.max_bad_share=0"),
        (99, 50, 0.05, None),
        (3, 3, 0.05, r"no row is left: .*, line 1 and line 3: no columns .* \| .*, line 2: unknown role"),
    ],
)
def test_too_many_bad_rows_stop(tmp_path, rows, bad, share, stops):
    texts = [*({"text": "x"} for number in range(bad)), *(conversation(n) for n in range(rows - bad))]
    texts[1:2] = [{"messages": [{"role": "humn", "content": "q"}]}] if rows == bad else texts[1:2]
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", texts)), "data.base", tmp_path / "cache")
    with pytest.raises(UserError, match=stops) if stops else nullcontext():
        check_malformed(made, "data.base", DataConfig(max_bad_share=share))
