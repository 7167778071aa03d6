import json
import subprocess
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.fields import Row, collect, render
from tometune.evaluation.tasks import fingerprint, load_task, load_tasks, read_rows, texts_of_task
from tometune.runs.identity import content_of

ROWS = [{"id": f"q{n}", "input": f"Question {n}?", "references": [f"Answer {n}."]} for n in range(50)]
GOOD = '{"input": "a", "references": ["b"]}'


def test_examples_have_prompt_system_text_and_references(jsonl):
    task = load_task("t", jsonl(ROWS, system="Be brief.", prompt="Q: {input}"))
    assert task.examples[3].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Question 3?"},
    ]
    assert task.examples[3].references == ["Answer 3."]
    assert (ids(task), task.limited) == ([row["id"] for row in ROWS], False)
    rows = [{"system": [{"type": "text", "text": "Reply in Welsh."}], "input": "Hello", "references": ["Shwmae"]}]
    for system, expected in ((None, "Reply in Welsh."), ("{system} Be brief.", "Reply in Welsh. Be brief.")):
        first = load_task("t", jsonl(rows, system=system)).examples[0].messages[0]
        assert first == {"role": "system", "content": expected}


def test_the_system_text_of_rows_in_a_shape_of_training_data_is_rendered(jsonl, caplog):
    caplog.set_level("INFO")
    rows = [{"question": f"Plural {n}?", "answer": "mice", "language": text, "level": 1} for n, text in enumerate("aé")]
    rows += [{"system": "Be brief.", "prompt": "Plural?", "completion": "mice"}]
    task = load_task("t", jsonl(rows, system="Answer in {language}, as {{JSON}}. "))
    systems = ["Answer in a, as {JSON}.", "Answer in é, as {JSON}.", "Be brief."]
    assert [example.messages[0] for example in task.examples] == [{"role": "system", "content": s} for s in systems]
    assert "eval.tasks.t: not read: level 2" in caplog.messages
    empty = load_task("t", jsonl([{**rows[0], "language": None}], system="{language}"))
    assert [message["role"] for message in empty.examples[0].messages] == ["user"]


def ids(task):
    return [example.id for example in task.examples]


def test_limits_are_nested_stable_and_marked(jsonl):
    config = jsonl(ROWS)
    ten, four = load_task("t", config, 10), load_task("t", config, 4)
    own, both = load_task("t", jsonl(ROWS, limit=10)), load_task("t", jsonl(ROWS, limit=10), 4)
    assert len(ten.examples) == 10
    assert set(ids(four)) < set(ids(ten)) != {row["id"] for row in ROWS[:10]}
    assert ids(ten) == sorted(ids(ten), key=lambda name: int(name[1:]))
    assert (ids(own), ids(both)) == (ids(ten), ids(four))
    assert [task.limited for task in (ten, four, own, both)] == [True, True, False, True]
    loaded = load_tasks(EvalConfig(tasks={"a": config, "b": jsonl(ROWS[:3], "b.jsonl")}, limit=5))
    assert [(task.name, len(task.examples), task.limited) for task in loaded] == [("a", 5, True), ("b", 3, False)]


def test_the_digest_follows_what_changes_a_score(jsonl, caplog):
    def digest(rows=ROWS, limit=None, **settings):
        return load_task("t", jsonl(rows, **settings), limit).digest

    assert digest() == digest(description="other") == digest(limit=50)
    other = {digest(version=2), digest(max_new_tokens=9), digest(metrics=["rouge", "bleu"]), digest(prompt="Q {input}")}
    assert len(other | {digest(), digest(limit=5), digest(ROWS[1:])}) == 7
    caplog.set_level("INFO")
    assert len({digest([{"input": "a", "references": [text]}]) for text in ("alpha", "άλφα")}) == 2
    assert "examples that ROUGE compares by Unicode words: 1" in caplog.text


def test_clusters_are_kept_and_change_neither_digest_nor_identity(jsonl):
    rows = [{**row, "page": {"title": f"Page {number // 20}"}} for number, row in enumerate(ROWS)]
    plain, task = load_task("t", jsonl(rows)), load_task("t", jsonl(rows, cluster="page.title"))
    assert [example.cluster for example in task.examples[19:21]] == ["Page 0", "Page 1"]
    assert [example.cluster for example in plain.examples] == [None] * 50
    assert task.digest == plain.digest
    assert content_of(jsonl(rows)) == content_of(jsonl(rows, cluster="page.title"))


def test_rows_of_one_prompt_are_one_example_and_what_is_not_read_is_logged(jsonl, caplog):
    caplog.set_level("INFO")
    rows = [{"input": "a", "references": text} for text in ("x", "y", "x")]
    config = jsonl([*rows, {"input": "b", "references": "z", "hint": "c"}])
    task = load_task("t", config)
    assert [(example.id, example.references) for example in task.examples] == [("0", ["x", "y"]), ("3", ["z"])]
    found = texts_of_task("t", config)
    assert {text[1:] for text in found} == {("0", "a"), ("0", "x"), ("0", "y"), ("3", "b"), ("3", "z")}
    assert "eval.tasks.t: not read: hint 1" in caplog.text
    assert "eval.tasks.t: 2 rows repeat a prompt; their references are joined" in caplog.text


def test_texts_are_fields_and_references_without_the_words_of_the_template(jsonl):
    rows = [
        {"id": "a", "input": "why?", "context": "since", "references": ["one", "two"], "note": "unused"},
        {"input": "how?", "context": None, "references": ["three"]},
    ]
    task = jsonl(rows, prompt="Read.\n{context}\n\nAnswer: {input}", limit=1)
    assert texts_of_task("qa", task) == [
        *[("qa", "a", text) for text in ("since", "why?", "one", "two")],
        *[("qa", "1", text) for text in ("", "how?", "three")],
    ]


def with_page(*pages):
    return [{**row, **page} for row, page in zip(ROWS, pages, strict=False)]


def chat(*turns):
    return {"messages": [{"role": role, "content": text, **more} for role, text, more in turns]}


ASKED, ANSWERED = ("user", "Plural?", {}), ("assistant", "mice", {})
CALLS = {"tool_calls": [{"name": "tide", "arguments": {}}]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "input": "a", "references": ["x"]}, {"id": "1", "input": "b", "references": ["x"]}], ": .*id '1'"),
        ([{"input": " ", "references": ["x"]}], r"\.prompt: .*task\.jsonl, line 1 gives an empty prompt"),
        (
            [GOOD, {"input": "c", "references": [""]}, {"input": "d", "references": []}],
            r"\.references: 2 of 3 rows have no reference.*task\.jsonl, line 2;",
        ),
        ([{"input": "a", "reference": "x"}], r"\.references: .* no field 'references'; did you mean reference\?"),
        (
            [{"id": "1", "puzzle": "2, 3, 5?", "solved": "7"}],
            r"\.prompt: .*; set e\.g\. eval\.tasks\.t\.prompt='\{puzzle\}' eval\.tasks\.t\.references=\[solved\]$",
        ),
        ([GOOD, "", GOOD, '{"input": '], r"/.*task\.jsonl, line 4: is not JSON \(Expecting value, column 10\)"),
        ([], r": .*task\.jsonl has no examples"),
        ([chat(ASKED, ("assistant", "Noon.", CALLS))], ": .*line 1 holds tools or tool calls, which a task cannot ask"),
        (with_page({}, {}), r"\.cluster: .*, line 1 has no field 'page' \(fields: id, input, references\)$"),
        (with_page({"pages": "x"}), r"\.cluster: .*, line 1 has no field 'page'; did you mean pages\?"),
        (with_page({"page": "x"}, {"page": None}), r"\.cluster: .*, line 2: page is empty; fill it in, or name"),
        (with_page({"page": "x"}, {"page": "x"}), r"\.cluster: page is 'x' in every row; name a field that differs"),
    ],
)
def test_bad_rows_are_one_line(jsonl, rows, message):
    start = "" if message.startswith("/") else r"eval\.tasks\.t"  # a defect of the file itself, which is named
    cluster = "page" if ".cluster" in message else None
    for read in (load_task,) if cluster else (load_task, texts_of_task):  # texts have no clusters
        with pytest.raises(UserError, match=f"^{start}{message}") as error:
            read("t", jsonl(rows, cluster=cluster))
        assert "\n" not in str(error.value)


def test_the_splits_of_the_documentation_share_no_example():
    def examples(split):
        texts = texts_of_task("s", TaskConfig(kind=TaskKind.pydocs, topic="summarisation", split=split))
        return {example for _, example, _ in texts}

    test, validation = examples("test"), examples("validation")
    assert min(len(test), len(validation)) > 0
    assert not test & validation
    with pytest.raises(UserError, match=r"^eval\.tasks\.s\.split=train: the documentation has the splits test and"):
        examples("train")


def test_fingerprints_follow_the_content_and_other_formats_are_read(tmp_path, jsonl):
    rows = [{"input": "a", "references": ["b"]}, {"input": "one\u2028two\u0085three", "references": ["d"]}]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    jsonl([json.dumps(row, ensure_ascii=False) for row in rows])
    for name in ("task.jsonl", "array.json", "table.parquet"):
        task = TaskConfig(path=str(tmp_path / name))
        assert [row.fields for row in read_rows("eval.tasks.t", task)] == rows
        assert fingerprint(task, "k") == sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"eval\.tasks\.t\.path=.*gone\.jsonl: no such file"):
        load_task("t", TaskConfig(path=str(tmp_path / "gone.jsonl")))


def test_a_folder_with_splits_gives_its_test_split(tmp_path):
    for name in ("train", "test", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"input": f"from {name}", "references": ["x"]}))
    task = TaskConfig(kind=TaskKind.jsonl, path=str(tmp_path))
    assert [example.messages[0]["content"] for example in load_task("t", task).examples] == ["from test"]
    assert fingerprint(task, "t") != fingerprint(TaskConfig(path=str(tmp_path), split="validation"), "t")


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_splits_gives_its_test_split(tmp_path, indent):
    file = tmp_path / "both.json"

    def asked(*names, split="test"):
        rows = {name: [{"input": f"from {name}", "references": ["x"]}] for name in names}
        file.write_text(json.dumps(rows, indent=indent))
        task = load_task("t", TaskConfig(path=str(file), split=split))
        return [example.messages[0]["content"] for example in task.examples]

    assert (asked("train", "test"), asked("train"), asked("data", "train")) == (
        ["from test"],
        ["from train"],
        ["from data"],
    )
    assert asked("train", "dev", split="dev") == ["from dev"]
    with pytest.raises(
        UserError, match=r"both\.json: holds train, dev and no rows as 'test'; set split to one of them$"
    ):
        asked("train", "dev")


def test_a_fingerprint_imports_nothing_heavy():
    code = (
        "import sys; from tometune.config.eval import TaskConfig, TaskKind\n"
        "from tometune.evaluation.tasks import fingerprint\n"
        "print(fingerprint(TaskConfig(kind=TaskKind.hub, id='a/b', revision='c' * 40), 'k'))\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'evaluate', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"a/b@{'c' * 40}", "[]"]


ROW = {
    "input": "What?",
    "context": None,
    "facts": [" a ", "", "b", "a"],
    "number": 3,
    "broken": "a\ud800b",
    "answers": {"text": ["x", "y"], "start": [1, 2]},
    "instances": [{"output": "one"}, {"output": "two"}],
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Where do "}, {"type": "text", "text": "eels spawn?"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": "Bye."},
    ],
    "object": {"text": "a"},
    "nothing": float("nan"),
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{context}\n\n{input}\n", "What?"),
        ("{answers.text} {number}", "x, y 3"),
        ("{{input}} {input}", "{input} What?"),
        ("{broken}", "a?b"),
        ("{instances.output}", "one, two"),
        ("{messages.user}", "Where do eels spawn?"),
        ("{messages.assistant}", "Hi."),
        ("{messages.content}", "Be kind., Where do eels spawn?, Hi., Bye."),
    ],
)
def test_render(template, expected):
    assert render(template, Row(ROW, "o"), "k")[0] == expected


def test_values_are_those_of_the_template_and_references_distinct_and_not_empty():
    assert render("{context} {answers.text}", Row(ROW, "o"), "k")[1] == ["", "x, y"]
    assert collect(["facts", "input", "context"], Row(ROW, "o"), "k") == ["a", "b", "What?"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        *((malformed, r".*\(write \{\{ and \}\} for plain braces\)$") for malformed in ("{input", "input}")),
        *((malformed, "only plain fields are supported") for malformed in ("{}", "{input!r}", "{number:03d}")),
        ("{imput}", r"f\.jsonl:7 has no field 'imput'; did you mean input\? \(fields: input, context"),
        ("{answers.txt}", r"f\.jsonl:7 has no field 'txt'; did you mean text\? \(fields: text, start\)"),
        ("{object}", r"f\.jsonl:7: field 'object' is an object with the fields text.*name another field"),
        ("{nothing}", r"f\.jsonl:7: field 'nothing' is NaN.*name another field"),
        ("{instances}", r"f\.jsonl:7: field 'instances' is an object"),
    ],
)
def test_a_template_that_leads_to_no_text_is_one_line(template, message):
    with pytest.raises(UserError, match=f"^k: {message}"):
        render(template, Row(ROW, "f.jsonl:7"), "k")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Name the plural.", "input": "mouse", "output": "mice"}, ["Name the plural.\n\nmouse"]),
        ({"question": "Plural of mouse?", "answer": "mice", "level": 2}, ["Plural of mouse?"]),
        (chat(("user", "Hi", {}), ("assistant", "Yes?", {}), ASKED, ANSWERED), ["Hi", "Yes?", "Plural?"]),
        ({"system": "Be brief.", "prompt": "Plural?", "completion": "mice"}, ["Be brief.", "Plural?"]),
        (chat(ASKED, ANSWERED, ASKED, ("assistant", "Bad.", {"weight": 0})), ["Plural?"]),
    ],
)
def test_rows_in_a_shape_of_training_data_are_examples(jsonl, caplog, row, prompt):
    caplog.set_level("INFO")
    (example,) = load_task("t", jsonl([row])).examples
    assert [message["content"] for message in example.messages] == prompt
    assert (example.references, example.texts) == (["mice"], [*prompt[prompt[0] == "Be brief." :], "mice"])
    assert ("not read: level 1" in caplog.text) == ("level" in row)
