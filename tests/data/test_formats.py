"""Rows of every shape as turns, what of them is not read, and what an error proposes."""

import json
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import error_of, files
from tometune.config.data import REJECTED, Preference, RowFormat
from tometune.data.formats import COLUMNS, ROLES, Reader
from tometune.data.turns import ARGUMENT_KEYS, MEDIA, TEXT_KEYS, WEIGHT_KEYS, FormatError, Turn, is_empty

S, QA = ("system", "s"), [("user", "q"), ("assistant", "a")]
GLAIVE = "USER: q\n\n\nASSISTANT: f(1) <|endoftext|>\n\n\nFUNCTION RESPONSE: 1\n\n\nASSISTANT: a <|endoftext|>"
VICUNA = [("system", "A chat."), *QA, ("user", "q\n\nq"), ("assistant", "b USER: c")]
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TURNS = [ASK, REPLY] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
MESSAGES = {"messages": TURNS}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
FALSE = (0, False, "false", "0.0")


def chat(*turns):
    return {"messages": list(turns)}


def user(content):
    return {"role": "user", "content": content}


def reply(**keys):
    return {**REPLY, **keys}


def tool(content, **keys):
    return {"role": "tool", "content": content, **keys}


def parts(**part):
    return user([{"type": "text", **part}])


def read(row, **options):
    return Reader(files(None, **options), "data.base").read(row)


def said(row, **options):
    return [(turn.role, turn.text) for turn in read(row, **options).turns]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (chat({**user(None), "text": "q"}, REPLY), QA),
        ({"messages": json.dumps(TURNS)}, QA),
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, [S, *QA]),
        ({"conversation": [{"human": "q", "assistant": "a"}] * 2}, QA * 2),
        ({**MESSAGES, "prompt": "q", "completion": "other"}, QA),
        ({"conversations": [], "messages": TURNS}, QA),
        ({"conversations": [None], **MESSAGES}, QA),
        ({"messages": None}, [("user", ""), ("assistant", "")]),
        (chat(parts(text=None), REPLY), [("user", ""), QA[1]]),
        (chat(None, *TURNS), [("", ""), *QA]),
        ({"instruction": "", "input": "q", "output": "a"}, QA),
        ({"instruction": "q", "input": "i", "context": "c", "output": "a"}, [("user", "q\n\ni\n\nc"), QA[1]]),
        ({"prompt": None, "completion": "a"}, [("user", ""), ("assistant", "a")]),
        ({"prompt": "q"}, [("user", "q"), ("assistant", "")]),  # JSON may leave out an answer that is null
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, QA),
        ({"prompt": [SYSTEM, ASK], "completion": "a"}, [S, *QA]),
        *(({name: "q", "answer": "a"}, QA) for name in COLUMNS["user"]),
        *(({"question": "q", name: "a"}, QA) for name in COLUMNS["assistant"]),
        ({"system": "SYSTEM: s", **SHAREGPT}, [S, *QA]),
        ({"system": "s", "messages": [{"role": "developer", "content": "own"}, *TURNS]}, [("system", "own"), *QA]),
        ({"system": "s", "messages": [{"role": "system", "content": ""}, *TURNS]}, [S, *QA]),
        ({"system": "s", **chat(*TURNS, {**SYSTEM, "content": "late"})}, [S, *QA, ("system", "late")]),
        ({"question": "q", "answer": 4}, [("user", "q"), ("assistant", "4")]),
        ({"prompt": json.dumps(TURNS[:1]), "completion": json.dumps(TURNS[1:])}, QA),
        ({"query": "q", "answers": "", "answer": '[{"name": "f"}]'}, [QA[0], ("assistant", '[{"name": "f"}]')]),
        ({"prompt": "q", "answer": '[{"role": "king"}]'}, [QA[0], ("assistant", '[{"role": "king"}]')]),
        ({"prompt": "[1]", "answer": "[]"}, [("user", "[1]"), ("assistant", "[]")]),
        (chat(tool({"t": 5})), [("tool", '{"t": 5}')]),
        (chat(tool([5, "x"])), [("tool", '[5, "x"]')]),
        *((chat(parts(**{key: "q"}), REPLY), QA) for key in TEXT_KEYS),
        ({"history": TURNS, "system": "s", **MESSAGES}, [S, *QA * 2]),
        ({"history": [["q", "a"]], **chat(SYSTEM, *TURNS)}, [S, *QA * 2]),
    ],
)
def test_shapes(row, turns):
    assert said(row) == turns


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (SHAREGPT, "sharegpt"),
        (MESSAGES, "messages"),
        ({"instruction": "q", "output": "a", **SHAREGPT, "conversations": TURNS[:1]}, "alpaca"),
        ({"instruction": "q", "response": "a"}, "alpaca"),
        ({"prompt": "q", "completion": "a", "answer": "b"}, "prompt_completion"),
    ],
)
def test_a_format_that_is_asked_for(row, form):
    assert said(row, format=RowFormat(form)) == QA


@pytest.mark.parametrize("role", ROLES)
def test_role_names(role):
    for name in (role, role.title(), f" {role.upper().replace('_', ' ')} "):
        assert said({"messages": [{"role": name, "content": "x"}]}) == [(ROLES[role], "x")]


@pytest.mark.parametrize(
    ("turn", "extra"),
    [
        *(({"content": "a", key: no}, {"trained": False}) for key, no in zip(WEIGHT_KEYS, FALSE, strict=True)),
        ({"content": "a", "loss_weight": 1.0}, None),
        ({"content": "a", "weight": None}, None),
        ({"content": "a", "thinking": [{"type": "text", "text": "r"}]}, {"reasoning": "r"}),
        ({"content": "a", "tool_calls": []}, None),
        ({"content": "a", "tool_calls": [{"id": "1", **CALL}]}, {"tool_calls": [{"id": "1", **CALL}]}),
        ({"content": None, "tool_calls": '[{"name": "f", "arguments": "{\\"x\\": 1}"}]'}, {"tool_calls": [CALL]}),
        ({"tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, {"tool_calls": [CALL]}),
        ({"content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}}, {"tool_calls": [CALL]}),
        ({"role": "tool_call", "content": "print(1)"}, None),
        ({"role": "function_call", "content": {"name": "f", "args": {"x": 1}}}, {"tool_calls": [CALL]}),
        *(({"tool_calls": [{"name": "f", key: {"x": 1}}]}, {"tool_calls": [CALL]}) for key in ARGUMENT_KEYS),
        ({"role": "tool", "content": "", "name": "f", "tool_call_id": "1"}, {"name": "f", "tool_call_id": "1"}),
        ({"role": "user", "content": "q", "weight": 0}, None),
    ],
)
def test_what_a_turn_holds_beyond_its_text(turn, extra):
    found = read({"messages": [{"role": "assistant", **turn}]})
    assert found.turns[0].extra == extra
    assert found.unread == set()


TWO_ARGUMENTS = {"name": "f", "args": {"x": 1}, "input": {"y": 1}, "index": 1}
THOUGHTFUL_CALL = {"role": "tool_call", "content": '{"name": "f", "thought": "t"}', "tool_calls": [CALL]}
TWO_OF_EACH = reply(tool_calls=[CALL], function_call={"name": "g"}, thinking="a", reasoning="b")


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({**MESSAGES, "label": 3, "images": [], "note": None, "score": 1.0}, {"label"}),
        ({**MESSAGES, "score": "4.5", "image": False, "images": [None], "audio": 0, "weight": 1}, set()),
        ({**MESSAGES, "score": "high", "weight": 0.5, "label": 1}, {"score", "weight", "label"}),
        ({"problem": "p", "solution": "s", "answer": "4"}, {"answer"}),
        (chat(reply(tool_calls=[TWO_ARGUMENTS])), {"turn.tool_calls.input"}),
        (chat(THOUGHTFUL_CALL), {"turn.tool_calls.thought", "turn.tool_calls"}),
        (chat(TWO_OF_EACH), {"turn.function_call", "turn.reasoning"}),
        ({"prompt": "q", "completion": [reply(thinking="t")], "reasoning_content": "r"}, {"reasoning_content"}),
        (chat(parts(text="q", value="v", cited=[1])), {"turn.part.value", "turn.part.cited"}),
        ({"prompt": "q", "question": "other", "answer": "a"}, {"prompt"}),
        ({"system": "t", **chat(SYSTEM, *TURNS)}, {"system"}),
        ({"system": "s", **chat(SYSTEM, *TURNS)}, set()),
        ({**MESSAGES, "tools": "not JSON"}, {"tools"}),
        ({**MESSAGES, "tools": {"f": {}}}, {"tools"}),
        ({**MESSAGES, "history": "a text"}, {"history"}),
        (chat(ASK, reply(weight=0.5, id=0)), {"turn.weight", "turn.id"}),
        (chat({**ASK, "train": True, "tool_calls": [CALL]}, REPLY), {"turn.train", "turn.tool_calls"}),
        (chat({"human": "q", "assistant": "a", "id": 5}), {"turn.id"}),
    ],
)
def test_what_is_not_read_is_named(row, unread):
    found = read(row)
    assert found.unread == unread
    assert found.dropped is None


@pytest.mark.parametrize(
    "given", [[TOOL], [TOOL["function"]], '[{"name": "f", "parameters": {}}]', ['{"name": "f", "parameters": {}}']]
)
def test_tools_have_one_shape(given):
    assert read({**MESSAGES, "tools": given}).tools == [TOOL]
    assert read({**SHAREGPT, "functions": given}).tools == [TOOL]
    assert read({**MESSAGES, "tools": []}).tools is None
    assert read({**MESSAGES, "tools": "[]"}).unread == set()


@pytest.mark.parametrize("name", MEDIA)
def test_rows_that_need_more_than_text_are_dropped(name):
    part = [{"type": "text", "text": "q"}, {"type": name, name: {"url": "x"}}]
    for row in ({**MESSAGES, name: ["x"]}, chat(user(part), REPLY)):
        assert read(row).dropped == MEDIA[name]
    assert read({**MESSAGES, name: []}).dropped is None


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "q", "chosen": [REPLY], "rejected": [REPLY]}, QA),
        ({"prompt": "q", "chosen": TURNS, "rejected": TURNS, "messages": TURNS[:1]}, QA),
        ({"conversations": TURNS[:1], "chosen": REPLY, "rejected": REPLY}, QA),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, QA),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, [S, *QA]),
        ({**MESSAGES, "rejected_response": "b"}, QA),
        ({**MESSAGES, "label": " TRUE"}, QA),
        ({**MESSAGES, "label": "False"}, None),
        ({"prompt": "q", "completion": "a", "label": 0}, None),
        ({"prompt": "q", "completion": "a", "label": "1"}, QA),
        ({**MESSAGES, "kto_tag": 0.0}, None),
        ({**MESSAGES, "chosen": "b", "rejected": "c"}, [QA[0], ("assistant", "b")]),
        ({"chosen": json.dumps(TURNS), "rejected": "[]"}, QA),
        ({"prompt": "q", "chosen": "[1]", "rejected": "[2]"}, [QA[0], ("assistant", "[1]")]),
    ],
)
def test_preference_data_is_read_only_if_asked_for(row, turns):
    with pytest.raises(FormatError, match=r"set data\.base\.preference=chosen") as caught:
        read(row)
    assert caught.value.reason == "preference_data"
    found = read(row, preference=Preference.chosen)
    assert found.unread <= {"prompt", "messages"}
    assert found.dropped == (None if turns else "not_chosen")
    assert said(row, preference=Preference.chosen) == (turns or QA)
    if "messages" in row and len(row) == 2:
        ignored = read(row, preference=Preference.ignore)
        assert [tuple(turn[:2]) for turn in ignored.turns] == QA
        assert ignored.unread == row.keys() - {"messages"}


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (GLAIVE, [QA[0], ("assistant", "f(1)"), ("tool", "1"), QA[1]]),
        ("A chat. USER: q ASSISTANT: a</s>USER: q\n\nq ASSISTANT: b USER: c</s> ", VICUNA),
        ("SYSTEM: s USER: q ASSISTANT: a</s>", [S, *QA]),
        ("User: q\nBot: a", QA),
        ("system: s\nhuman: q\nai: a", [S, *QA]),
        *(
            (f"Human: q\n\nAssistant: {quoting}\n\nHuman: q", [QA[0], ("assistant", quoting), QA[0]])
            for quoting in ("b\nUser: q\nAssistant: a\nc", "b\n\nUser: q", "log\nSystem: up", "b\n\nASSISTANT: c")
        ),
        ("### Human: q\n### Assistant: a\n### Note: b", [QA[0], ("assistant", "a\n### Note: b")]),
        ("User: q\nAssistant: </s> ends <|im_end|> it </s>\n</s>", [QA[0], ("assistant", "</s> ends <|im_end|> it")]),
    ],
)
def test_transcripts_are_read_from_a_column_that_is_named(text, turns):
    assert said({"text": text}, columns={"messages": "text"}) == turns


def test_columns_that_are_named():
    row = {"Frage": "q", "Antwort": "a", "Gedanken": "r", "context": "c", "persona": "s", "input": "i"}
    columns = {"user": "Frage", "assistant": "Antwort", "reasoning": "Gedanken", "system": "persona"}
    found = read(row, columns=columns)
    assert found.turns == [Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a", {"reasoning": "r"})]
    assert found.unread == {"context", "input"}
    assert said(row, columns={**columns, "context": "context"})[1] == ("user", "q\n\nc")
    assert said({"Frage": "q", "output": "a", "input": "i"}, columns={"user": "Frage"}) == QA
    assert said({"chat": TURNS, "input": "i"}, columns={"messages": "chat"}) == QA
    compared = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert said(compared, columns={"user": "prompt", "assistant": "chosen"}) == QA
    unread = read(row, columns={**columns, "history": "Verlauf"}).unread
    assert unread == {"context", "input", "Verlauf (no such column)"}
    message = r"has no column 'Frage', which data\.base\.columns\.user names; its columns are"
    with pytest.raises(FormatError, match=message):
        read(MESSAGES, columns=columns)


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"id": "1", "Question": "q", "Answer": "a"}, "user: Question, assistant: Answer"),
        ({"ask": "q", "reply text": "a"}, 'user: ask, assistant: "reply text"'),
        ({"Q": "q", "chosen": "", "rejected_text": "b", "A id": "1"}, "user: Q, assistant: ANSWERS"),
        ({"ask": "q", "context": "c", "reply": "a"}, "user: ask, assistant: reply, context: context"),
        ({"title": "t", "context": "c", "question": "q"}, "user: question, assistant: ANSWERS, context: context"),
        ({"a:b": "q", "c": "a"}, 'user: "a:b", assistant: c'),
        ({"log": TURNS, "text": "x"}, "messages: log"),
        ({"text": "### Human: q### Assistant: a"}, "messages: text"),
    ],
)
def test_unknown_columns_are_answered_with_the_mapping(row, mapping):
    for options, more in (({}, ""), ({"format": RowFormat.alpaca}, "data.base.format=auto ")):
        with pytest.raises(FormatError) as caught:
            read(row, **options)
        assert caught.value.reason == "unknown_columns"
        assert str(caught.value).endswith(f"; set {more}'data.base.columns={{{mapping}}}'")


@pytest.mark.parametrize(
    "name", ["问题", "it's", "null", "Inf", "1", "a=b", 'say "so"', "{x}", "a,b", "_q", "q?", "ques\\tion x", "q \\"]
)
def test_the_mapping_can_be_copied_for_any_name(name):
    (line,) = shlex.split(error_of(read, {name: "q", "Reply": "a"}, kind=FormatError).partition("; set ")[2])
    assert OverridesParser.create().parse_override(line).value() == {"user": name, "assistant": "Reply"}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (chat({"role": "usr", "content": "q"}), "unknown_role", "unknown role 'usr'; did you mean user? use"),
        (chat({"role": ["user"], "content": ""}), "unknown_role", "unknown role \"['user']\"; use one of sys"),
        (chat({"content": "q"}), "no_role", "a turn has no role in from or role (its keys: content); use one"),
        (chat({"role": "user", "txt": ""}), "no_text", "a turn has no text in value or content or text (its"),
        (chat(user({}), 3), "turn_not_an_object", "a turn is of type int"),
        (chat(3), "turn_not_an_object", "a turn is of type int; make it an object with role and content"),
        ({"messages": {"role": "user"}}, "not_a_list_of_turns", "the conversation in 'messages' is of type dict; make"),
        ({"messages": "hello"}, "not_a_list_of_turns", "the conversation in 'messages' is of type str; make it a list"),
        ({"messages": "User: q\nFriend: a"}, "not_a_list_of_turns", "the conversation in 'messages' is of type str; "),
        ({"messages": "USER: q ASSISTANT: a</s>b"}, "not_a_list_of_turns", "the conversation in 'messages' is of type"),
        (ASK, "turn_not_conversation", "is a single turn; write a conversation per row"),
        ({"instruction": True, "output": "a"}, "not_a_text", "a turn's text is of type bool"),
        (chat(reply(weight=-1)), "bad_weight", "a turn's weight is '-1'; make it 0 or 1"),
        (chat(tool("r", name=b"f")), "no_json_value", "tools or a tool's turn"),
        (chat(tool({"x": b"f"})), "no_json_value", "tools or a tool's turn"),
        (chat(parts(txt="q")), "unknown_part", "a part of a turn is of type 'text'"),
        (chat(reply(tool_calls="f(1)")), "bad_tool_call", "a tool call cannot be read; make it {fun"),
        (chat(reply(tool_calls=[{"name": 5}])), "bad_tool_call", "a tool call cannot be read; make it {fun"),
        ({}, "unknown_columns", "no columns with turns, nor with a question and its answer, among none; set"),
    ],
)
def test_rows_that_cannot_be_read(row, reason, message):
    with pytest.raises(FormatError) as caught:
        read(row)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(message)


NAMES = st.sampled_from([*(name for names in COLUMNS.values() for name in names), *MEDIA, *REJECTED, "label", "chosen"])
KEYS = st.sampled_from(["from", "value", "role", "content", "type", "text", "tool_calls", "function", "name", "weight"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS | NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TURN = st.dictionaries(KEYS | NAMES, JSON | st.sampled_from(list(ROLES)), max_size=4)
ROW = st.dictionaries(NAMES | st.text(max_size=3), JSON | st.lists(JSON | TURN, max_size=3), max_size=5)


@settings(deadline=None, max_examples=200)
@given(row=ROW, form=st.sampled_from(RowFormat), preference=st.sampled_from(Preference))
def test_any_row_is_read_or_rejected(row, form, preference):
    """A row becomes turns with a known role and text, and each column is read or named; or it has one error."""
    try:
        found = read(row, format=form, preference=preference)
    except FormatError as error:
        assert "; " in str(error)  # noqa: PT017 -- either outcome is right, each in its own way
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert {turn.role for turn in found.turns} <= {"", "system", "user", "assistant", "tool"}
    assert all(isinstance(turn.text, str) for turn in found.turns)
    empty = {name for name, value in row.items() if is_empty(value) or (name in MEDIA and not value)}
    assert row.keys() - empty <= found.read | found.unread


def test_an_error_is_one_line_for_any_column_names():
    row = {"a\nb": 1, "c" * 10_000: 1, **{f"d{number}": 1 for number in range(1000)}}
    error = error_of(read, row, kind=FormatError)
    assert "among 'a\\nb', " in error
    assert "and 972 more; set" in error
    assert len(error) < 1000
