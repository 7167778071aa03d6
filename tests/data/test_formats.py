import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tometune.common.errors import UserError
from tometune.config.data import RowFormat
from tometune.data.formats import ROLES, FormatError, format_of, reader

COLUMNS = ("conversations", "messages", "instruction", "input", "output", "prompt", "completion", "system")
NAMES = st.sampled_from([*COLUMNS, "from", "value", "role", "content"])
QA = [("user", "q"), ("assistant", "a")]
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
MESSAGES = {"messages": TURNS}


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        (SHAREGPT, RowFormat.sharegpt, QA),
        (MESSAGES, RowFormat.messages, QA),
        ({"conversations": TURNS}, RowFormat.messages, QA),
        ({**MESSAGES, "prompt": "q", "completion": "other"}, RowFormat.messages, QA),
        ({"instruction": "q", "input": "", "output": "a"}, RowFormat.alpaca, [("system", ""), *QA]),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s"},
            RowFormat.alpaca,
            [("system", "s"), ("user", "q\n\ni"), ("assistant", "a")],
        ),
        ({"prompt": "q", "completion": "a"}, RowFormat.prompt_completion, QA),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, RowFormat.prompt_completion, QA),
    ],
)
def test_formats_are_recognised_and_read(row, form, turns):
    assert format_of([row], RowFormat.auto, "x") is form
    assert format_of([row], form, "x") is form
    assert reader(form)(row) == turns


def test_rows_may_be_null_or_lack_a_column():
    rows = [{"conversations": None}, {"conversations": []}, {"conversations": [None]}, {"other": 1}, SHAREGPT]
    assert format_of(rows, RowFormat.auto, "x") is RowFormat.sharegpt
    read = reader(RowFormat.sharegpt)
    assert [read(row) for row in rows] == [[], [], [("", "")], [], QA]
    assert format_of([{"messages": None}], RowFormat.auto, "x") is RowFormat.messages
    for empty in (None, [], [None], ""):  # the next column counts
        assert reader(RowFormat.messages)({"conversations": empty, **MESSAGES}) == QA
    rows = [{"prompt": "q"}, {"prompt": None, "completion": "a"}]
    assert format_of(rows, RowFormat.auto, "x") is RowFormat.prompt_completion
    assert reader(RowFormat.prompt_completion)(rows[1]) == [("user", ""), ("assistant", "a")]


@pytest.mark.parametrize("role", ROLES)
def test_role_names(role):
    assert reader(RowFormat.messages)({"messages": [{"role": role, "content": None}]}) == [(ROLES[role], "")]


@pytest.mark.parametrize(
    ("rows", "requested", "message"),
    [
        ([{"id": 1}, {"text": "x"}], "auto", "x.jsonl: no conversation column among id, text; a row needs"),
        ([{"conversations": "[]"}], "auto", "x.jsonl: column conversations holds str, not a list of turns; a row"),
        ([{"messages": ["a"]}], "auto", "x.jsonl: column messages holds list of str, not a list of turns"),
        (
            [SHAREGPT],
            "alpaca",
            "x.jsonl: format=alpaca needs instruction and output, but the columns are conversations",
        ),
        ([{"prompt": "q"}], "messages", "x.jsonl: format=messages needs conversations or messages or conversation"),
    ],
)
def test_unknown_columns(rows, requested, message):
    with pytest.raises(UserError, match=r"try format=auto|a row needs") as caught:
        format_of(rows, RowFormat(requested), "x.jsonl")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("sharegpt", {"conversations": [{"from": "humn"}]}, "unknown role 'humn'; did you mean human? use one of"),
        ("sharegpt", {"conversations": [{"value": "q"}]}, "a turn has no role in 'from' (its keys: value); use one of"),
        ("messages", {"messages": [{"role": None, "content": "q"}]}, "a turn has no role in 'role'"),
        ("messages", {"messages": [{"role": ["user"]}]}, "unknown role \"['user']\"; use one of system, human"),
        ("messages", {"messages": [{"role": "user", "content": 3}]}, "a turn's text is of type int; make it text"),
        ("messages", {"messages": [{"role": "user", "text": ""}]}, "a turn has no text in 'content' (its keys: role, "),
        ("messages", {"messages": ["q"]}, "a turn is of type str; make it {role, content}"),
        ("messages", {"messages": {"role": "user"}}, "the conversation is of type dict; make it a list of turns"),
        ("alpaca", {"instruction": 1, "output": "a"}, "a turn's text is of type int"),
    ],
)
def test_broken_rows(form, row, message):
    with pytest.raises(FormatError) as caught:
        reader(RowFormat(form))(row)
    assert str(caught.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TURN = st.dictionaries(NAMES, JSON | st.sampled_from(list(ROLES)), max_size=4)
ROW = st.dictionaries(NAMES | st.text(max_size=3), JSON | st.lists(JSON | TURN, max_size=3), max_size=5)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(ROW, max_size=4), requested=st.sampled_from(RowFormat))
def test_any_rows_are_read_or_rejected(rows, requested):
    """Rows become turns with a known role and text, or one of the two errors is raised; nothing else happens."""
    try:
        form = format_of(rows, requested, "x")
    except UserError as error:
        assert str(error).startswith("x: ")  # noqa: PT017 -- either outcome is right, each in its own way
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert form is not RowFormat.auto
    assert requested in (RowFormat.auto, form)
    read = reader(form)
    for row in rows:
        try:
            turns = read(row)
        except FormatError as error:
            assert "; " in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert {role for role, _ in turns} <= {"", "system", "user", "assistant", "tool"}
        assert all(isinstance(text, str) for _, text in turns)


def test_an_error_is_one_line_for_any_column_names():
    with pytest.raises(UserError) as caught:
        format_of([{"a\nb": 1, "c" * 10_000: 1, **{f"d{number}": 1 for number in range(1000)}}], RowFormat.auto, "x")
    assert "\n" not in str(caught.value)
    assert "among 'a\\nb', " in str(caught.value)
    assert "and 972 more; a row needs" in str(caught.value)
    assert len(str(caught.value)) < 1000
