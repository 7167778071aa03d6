import json
import subprocess
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.fields import Row, collect, reach, render
from tometune.evaluation.tasks import fingerprint, load_task, load_tasks, read_rows, texts_of_task
from tometune.runs.identity import content_of

ROWS = [{"id": f"q{n}", "input": f"Question {n}?", "references": [f"Answer {n}."]} for n in range(50)]
GOOD = '{"input": "a", "references": ["b"]}'


def ids(task):
    return [example.id for example in task.examples]


def test_examples_have_prompt_and_references(jsonl):
    task = load_task("t", jsonl(ROWS, system="Be brief.", prompt="Q: {input}"))
    assert task.examples[3].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Question 3?"},
    ]
    assert task.examples[3].references == ["Answer 3."]
    assert (ids(task), task.limited) == ([row["id"] for row in ROWS], False)


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
    assert "ROUGE compares 1 examples by Unicode words" in caplog.text


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "input": "a", "references": ["x"]}, {"id": "1", "input": "b", "references": ["x"]}], "id '1'"),
        ([{"input": " ", "references": ["x"]}], r"prompt: .*task\.jsonl, line 1 gives an empty prompt"),
        (
            [GOOD, {"input": "c", "references": [""]}, {"input": "d", "references": []}],
            r"^eval\.tasks\.t\.references: 2 of 3 rows have no reference.*task\.jsonl, line 2;",
        ),
        ([{"input": "a", "reference": "x"}], r"no field 'references'; did you mean reference\?"),
        (
            [{"id": "1", "puzzle": "2, 3, 5?", "solved": "7"}],
            r"; set e\.g\. eval\.tasks\.t\.prompt='\{puzzle\}' eval\.tasks\.t\.references=\[solved\]$",
        ),
        ([GOOD, "", GOOD, '{"input": '], r"task\.jsonl, line 4: is not JSON \(Expecting value, column 10\)"),
        ([], r"eval\.tasks\.t: .*task\.jsonl has no examples"),
    ],
)
@pytest.mark.parametrize("read", [load_task, texts_of_task])
def test_bad_rows(jsonl, rows, message, read):
    with pytest.raises(UserError, match=message):
        read("t", jsonl(rows))


def test_clusters_are_kept_and_change_neither_digest_nor_identity(jsonl):
    rows = [{**row, "page": {"title": f"Page {number // 20}"}} for number, row in enumerate(ROWS)]
    plain, task = load_task("t", jsonl(rows)), load_task("t", jsonl(rows, cluster="page.title"))
    assert [example.cluster for example in task.examples[19:21]] == ["Page 0", "Page 1"]
    assert [example.cluster for example in plain.examples] == [None] * 50
    assert task.digest == plain.digest
    assert content_of(jsonl(rows)) == content_of(jsonl(rows, cluster="page.title"))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([{}, {}], r"mine\.jsonl, line 1 has no field 'page' \(fields: id, input, references\)$"),
        ([{"pages": "x"}], r", line 1 has no field 'page'; did you mean pages\?"),
        ([{"page": "x"}, {"page": None}], r", line 2: page is empty; fill it in, or name"),
        ([{"page": "x"}, {"page": "x"}], r"page is 'x' in every row; name a field that differs, or none"),
    ],
)
def test_a_field_that_gives_no_clusters_is_one_line(jsonl, pages, message):
    rows = [{**row, **page} for row, page in zip(ROWS, pages, strict=False)]
    with pytest.raises(UserError, match=rf"^eval\.tasks\.t\.cluster: .*{message}") as error:
        load_task("t", jsonl(rows, "mine.jsonl", cluster="page"))
    assert "\n" not in str(error.value)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"eval\.tasks\.t\.path=.*gone\.jsonl: no such file"):
        load_task("t", TaskConfig(path=str(tmp_path / "gone.jsonl")))
    with pytest.raises(UserError, match="has no file that ends in"):
        fingerprint(TaskConfig(path=str(tmp_path)), "eval.tasks.t")


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
        ("{context}\n\n{input}\n", ("What?", ["", "What?"])),
        ("{answers.text} {number}", ("x, y 3", ["x, y", "3"])),
        ("{{input}} {input}", ("{input} What?", ["What?"])),
        ("{broken}", ("a?b", ["a?b"])),
        ("{messages.user}", ("Where do eels spawn?", ["Where do eels spawn?"])),
    ],
)
def test_render(template, expected):
    assert render(template, Row(ROW, "o"), "k") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("answers.text", ["x", "y"]),
        ("instances.output", ["one", "two"]),
        ("messages.assistant", ["Hi."]),
        ("messages.content", ["Be kind.", "Where do eels spawn?", "Hi.", "Bye."]),
        ("context", []),
    ],
)
def test_reach(path, expected):
    assert list(reach(ROW, path, "k: o")) == expected


def test_references_are_distinct_and_not_empty():
    assert collect(["facts", "input", "context"], Row(ROW, "o"), "k") == ["a", "b", "What?"]


@pytest.mark.parametrize("template", ["{input", "input}", "{}", "{input!r}", "{number:03d}"])
def test_malformed_templates(template):
    with pytest.raises(UserError, match=r"^k: "):
        render(template, Row(ROW, "o"), "k")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("imput", r"has no field 'imput'; did you mean input\? \(fields: input, context"),
        ("answers.txt", r"no field 'txt'; did you mean text\? \(fields: text, start\)"),
        ("object", ": field 'object' is an object with the fields text.*name another field"),
        ("nothing", ": field 'nothing' is NaN.*name another field"),
        ("instances", ": field 'instances' is an object"),
    ],
)
def test_a_path_that_leads_to_no_text_is_one_line(path, message):
    with pytest.raises(UserError, match=rf"^k: f\.jsonl:7.*{message}"):
        collect([path], Row(ROW, "f.jsonl:7"), "k")


def test_a_rows_system_text_precedes_its_prompt_unless_the_task_has_one(jsonl):
    rows = [{"system": [{"type": "text", "text": "Reply in Welsh."}], "input": "Hello", "references": ["Shwmae"]}]
    assert load_task("t", jsonl(rows)).examples[0].messages[0] == {"role": "system", "content": "Reply in Welsh."}
    own = load_task("t", jsonl(rows, system="{system} Be brief.")).examples[0].messages
    assert own[0]["content"] == "Reply in Welsh. Be brief."


def chat(*turns):
    return {"messages": [{"role": role, "content": text, **more} for role, text, more in turns]}


ASKED, ANSWERED = ("user", "Plural?", {}), ("assistant", "mice", {})


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
    assert example.references == ["mice"]
    assert example.texts == [*prompt, "mice"]
    assert ("not read: level 1" in caplog.text) == ("level" in row)


def test_training_rows_with_tools_cannot_be_asked(jsonl):
    calls = {"tool_calls": [{"name": "tide", "arguments": {}}]}
    with pytest.raises(UserError, match=r"line 1 holds tools or tool calls, which a task cannot ask for"):
        load_task("t", jsonl([chat(ASKED, ("assistant", "Noon.", calls))]))


def test_a_folder_with_splits_gives_its_test_split(tmp_path):
    for name in ("train", "test", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"input": f"from {name}", "references": ["x"]}))
    task = TaskConfig(kind=TaskKind.jsonl, path=str(tmp_path))
    assert [example.messages[0]["content"] for example in load_task("t", task).examples] == ["from test"]
    assert fingerprint(task, "t") != fingerprint(TaskConfig(path=str(tmp_path), split="validation"), "t")
