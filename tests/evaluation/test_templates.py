import pytest

from tometune.common.errors import UserError
from tometune.evaluation.templates import collect, reach, render

ROW = {
    "input": "What?",
    "context": None,
    "facts": ["a", "b"],
    "number": 3,
    "broken": "a\ud800b",
    "answers": {"text": ["x", "y"], "start": [1, 2]},
    "instances": [{"output": "one"}, {"output": "two"}],
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye."},
    ],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{input}", "What?"),
        ("{context}\n\n{input}\n", "What?"),
        ("{facts} {number}", "a, b 3"),
        ("{{input}} {input}", "{input} What?"),
        ("{answers.text}", "x, y"),
        ("{broken}", "a?b"),
    ],
)
def test_render(template, expected):
    assert render(template, ROW, "k", "o") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("answers.text", ["x", "y"]),
        ("instances.output", ["one", "two"]),
        ("messages.assistant", ["Hi."]),
        ("messages.content", ["Be kind.", "Hello", "Hi.", "Bye", "Bye."]),
        ("context", []),
    ],
)
def test_reach(path, expected):
    assert list(reach(ROW, path)) == expected


def test_unknown_field_is_told_with_the_nearest_and_all():
    message = r"^eval\.tasks\.t\.prompt: f\.jsonl:7 has no field 'imput'; did you mean input\? \(fields: input, context"
    with pytest.raises(UserError, match=message):
        render("{imput}", ROW, "eval.tasks.t.prompt", "f.jsonl:7")
    with pytest.raises(UserError, match=r"no field 'txt'; did you mean text\? \(fields: text, start\)"):
        collect(["answers.txt"], ROW, "k", "o")


@pytest.mark.parametrize("template", ["{input", "input}", "{}", "{input!r}", "{number:03d}"])
def test_malformed_templates(template):
    with pytest.raises(UserError, match=r"^k: "):
        render(template, ROW, "k", "o")


def test_references_are_distinct_and_not_empty():
    assert collect(["r", "s"], {"r": [" a ", "", "b", "a"], "s": "c"}, "k", "o") == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"^k: f:3 has no reference with any text"):
        collect(["r"], {"r": [" ", None]}, "k", "f:3")
