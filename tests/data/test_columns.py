"""The columnar way gives the rows, keys and counts of the row-wise way."""

import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import files
from tometune.config.data import RowFormat
from tometune.data.columns import conversations
from tometune.data.readers import Batch
from tometune.data.standardise import standardised

TEXTS = st.one_of(
    st.none(), st.sampled_from(["", " ", "\n\x1c", "\u3000", "\u200b", "ﬁ", "İ", "ß A"]), st.text(max_size=5)
)
ROLES = st.sampled_from(["human", "gpt", "system", "tool", "user", "assistant"])
TURN = st.one_of(st.none(), st.fixed_dictionaries({"from": ROLES, "value": TEXTS}))
ALTERNATING = st.integers(1, 3).map(
    lambda pairs: [{"from": ("human", "gpt")[turn % 2], "value": f"t{turn}"} for turn in range(2 * pairs)]
)
ROW = st.fixed_dictionaries(
    {
        "conversations": st.one_of(st.none(), ALTERNATING, st.lists(TURN, max_size=5)),
        "source": st.sampled_from([None, "", "s", "ü"]),
        "dataset": st.sampled_from([None, "d"]),
        "score": st.sampled_from([None, 1.5, -2.0]),
    }
)
TYPE = pa.schema(
    {
        "conversations": pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})),
        "source": pa.string(),
        "dataset": pa.string(),
        "score": pa.float64(),
    }
)


def by_row(rows, source):
    return standardised(Batch(rows, "x", range(len(rows))), source)


def same(one, other):
    assert one.rows.to_pylist() == other.rows.to_pylist()
    np.testing.assert_array_equal(one.scores, other.scores)
    assert (one.read, one.dropped, one.mended) == (other.read, other.dropped, other.mended)
    assert one.places.tolist() == other.places.tolist()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=6), cut=st.integers(0, 2))
def test_as_by_row(rows, cut):
    rows = [row if row["conversations"] is None else row | {"conversations": _no_surrogates(row)} for row in rows]
    batch = pa.RecordBatch.from_pylist([rows[0]] * cut + rows, schema=TYPE).slice(cut)
    assert conversations(batch, RowFormat.auto) is not None
    form = RowFormat.sharegpt  # rows of nulls alone do not show it
    same(standardised(Batch(batch, "x", range(len(rows))), files("x")), by_row(rows, files("x", format=form)))


def _no_surrogates(row):
    clean = [
        turn and turn | {"value": turn["value"] and turn["value"].encode("utf-8", "replace").decode()}
        for turn in row["conversations"]
    ]
    return clean


def test_white_space_is_pythons():
    """Of every character: whether a turn of it alone is empty is decided as `str.isspace` does."""
    characters = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    texts = pa.array([text for character in characters for text in (character, "a")])
    roles = pa.array(["human", "gpt"]).take(pa.array(np.arange(len(texts)) % 2))
    turns = pa.StructArray.from_arrays([roles, texts], names=["from", "value"])
    column = pa.ListArray.from_arrays(np.arange(0, len(texts) + 1, 2, dtype=np.int32), turns)
    found = conversations(pa.RecordBatch.from_arrays([column], names=["conversations"]), RowFormat.auto)
    assert found.in_order.tolist() == [not character.isspace() for character in characters]


@pytest.mark.parametrize("form", ["sharegpt", "messages"])
def test_both_shapes_and_turns_with_more_fields(form):
    role, text = {"sharegpt": ("from", "value"), "messages": ("role", "content")}[form]
    rows = [{"messages": [{role: "user", text: "q", "weight": 1}, {role: "assistant", text: "a", "weight": 0}]}]
    batch = pa.RecordBatch.from_pylist(rows)
    assert conversations(batch, RowFormat.auto).in_order.all()
    same(standardised(Batch(batch, "x", [0]), files("x")), by_row(rows, files("x")))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["q", "a"]]),
        pa.array([[{"from": "human", "value": 1}]]),
        pa.array(["text"]),
        pa.array([None]),
        pa.array([[{"from": "human"}]]),
    ],
)
def test_other_shapes_are_left_to_the_rows(column):
    batch = pa.RecordBatch.from_arrays([column], names=["conversations"])
    assert conversations(batch, RowFormat.auto) is None


def test_bytes_that_are_no_text_are_replaced_and_counted():
    texts = pa.array([b"q", b"a\xff b", b"q", b"a"]).cast(pa.binary()).view(pa.string())
    turns = pa.StructArray.from_arrays([pa.array(["human", "gpt"] * 2), texts], names=["from", "value"])
    batch = pa.RecordBatch.from_arrays([pa.ListArray.from_arrays([0, 2, 4], turns)], names=["conversations"])
    made = standardised(Batch(batch, "x", range(2)), files("x"))
    assert [row["messages"][1]["content"] for row in made.rows.to_pylist()] == ["a\N{REPLACEMENT CHARACTER} b", "a"]
    assert made.mended == {"broken_character_replaced": {"files": 1}}


TURNS = {"from": pa.string(), "value": pa.string()}


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_other_texts_of_arrow_are_read_as_columns(text, monkeypatch):
    """Large, viewed and by dictionary: as plain strings are."""
    rows = [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]} for n in range(4)
    ]
    plain = pa.RecordBatch.from_pylist(rows, pa.schema({"conversations": pa.list_(pa.struct(TURNS))}))
    turns = plain.column(0).flatten()
    values = turns.field("value").cast(text)
    names = turns.field("from").cast(text)
    struct = pa.StructArray.from_arrays([names, values], names=["from", "value"])
    lists = pa.LargeListArray.from_arrays(pa.array([0, 2, 4, 6, 8], pa.int64()), struct)
    labels = pa.array(["s"] * 4).cast(text)
    other = pa.RecordBatch.from_arrays([lists, labels], names=["conversations", "source"])
    expected = standardised(Batch(plain.append_column("source", pa.array(["s"] * 4)), "x", range(4)), files("x"))
    monkeypatch.setattr("tometune.data.standardise._by_row", None)
    same(standardised(Batch(other, "x", range(4)), files("x")), expected)


def test_a_dictionary_with_bytes_that_are_no_text():
    words = pa.array([b"a\xff", b"b"]).cast(pa.binary()).view(pa.string())
    value = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), words)
    struct = pa.StructArray.from_arrays([pa.array(["human", "gpt"]), value], names=["from", "value"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), struct)
    batch = pa.RecordBatch.from_arrays([lists], ["conversations"])
    piece = standardised(Batch(batch, "x", range(1)), files("x"))
    assert piece.rows.column("messages").to_pylist()[0][1]["content"] == "a\ufffd"
    assert list(piece.mended) == ["broken_character_replaced"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("score", [10**400, 1e300, 2**62, 3])
def test_scores_of_any_size(score):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    found = [by_row([{"conversations": turns, "score": score}], files("x")).scores[0]]
    if score < 10**400:
        batch = pa.RecordBatch.from_pylist([{"conversations": turns, "score": score}])
        found.append(standardised(Batch(batch, "x", range(1)), files("x")).scores[0])
    expected = np.float32(score) if score < 1e30 else np.float32("nan")
    np.testing.assert_array_equal(found, expected)
