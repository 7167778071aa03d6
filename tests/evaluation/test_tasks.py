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
    assert ids(task) == [row["id"] for row in ROWS]
    assert not task.limited


def test_limits_are_nested_stable_and_marked(jsonl):
    config = jsonl(ROWS)
    ten, four = load_task("t", config, 10), load_task("t", config, 4)
    own = load_task("t", jsonl(ROWS, limit=10))
    both = load_task("t", jsonl(ROWS, limit=10), 4)
    assert len(ten.examples) == 10
    assert set(ids(four)) < set(ids(ten)) != {row["id"] for row in ROWS[:10]}
    assert ids(ten) == sorted(ids(ten), key=lambda name: int(name[1:]))
    assert ids(own) == ids(ten)
    assert ids(both) == ids(four)
    assert [task.limited for task in (ten, four, own, both)] == [True, True, False, True]
    tasks = {"a": config, "b": jsonl(ROWS[:3], "b.jsonl")}
    loaded = load_tasks(EvalConfig(tasks=tasks, limit=5))
    assert [(task.name, len(task.examples), task.limited) for task in loaded] == [("a", 5, True), ("b", 3, False)]


def test_the_digest_follows_what_changes_a_score(jsonl):
    def digest(rows=ROWS, limit=None, **settings):
        return load_task("t", jsonl(rows, **settings), limit).digest

    same = {digest(), digest(description="other"), digest(limit=50)}
    assert len(same) == 1
    other = {digest(version=2), digest(max_new_tokens=9), digest(metrics=["rouge", "bleu"]), digest(prompt="Q {input}")}
    assert len(same | other | {digest(limit=5), digest(ROWS[1:])}) == 7


def test_rows_of_one_prompt_are_one_example(jsonl):
    rows = [{"input": "a", "references": text} for text in ("x", "y", "x")] + [{"input": "b", "references": "z"}]
    config = jsonl(rows)
    task = load_task("t", config)
    assert [(example.id, example.references) for example in task.examples] == [("0", ["x", "y"]), ("3", ["z"])]
    found = texts_of_task("t", config)
    assert {text[1:] for text in found} == {("0", "a"), ("0", "x"), ("0", "y"), ("3", "b"), ("3", "z")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "input": "a", "references": ["x"]}, {"id": "1", "input": "b", "references": ["x"]}], "id '1'"),
        ([{"input": " ", "references": ["x"]}], r"prompt: .*task\.jsonl, line 1 gives an empty prompt"),
        ([{"input": "a", "references": []}], r"references: 1 of 1 rows have no reference.*task\.jsonl, line 1"),
        ([{"input": "a", "reference": "x"}], r"no field 'references'; did you mean reference\?"),
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
    ("rows", "message"),
    [
        (
            ROWS,
            r"eval\.tasks\.t\.cluster: .*mine\.jsonl, line 1 has no field 'page' \(fields: id, input, references\)$",
        ),
        ([{**ROWS[0], "pages": "x"}], r"cluster: .*, line 1 has no field 'page'; did you mean pages\?"),
        (
            [{**ROWS[0], "page": "x"}, {**ROWS[1], "page": None}],
            r"cluster: .*, line 2: page is empty; fill it in, or name",
        ),
        (
            [{**row, "page": "x"} for row in ROWS],
            r"cluster: page is 'x' in every row; name a field that differs, or none",
        ),
    ],
)
def test_a_field_that_gives_no_clusters_is_one_line(jsonl, rows, message):
    with pytest.raises(UserError, match=message) as error:
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
    assert test
    assert validation
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
    "facts": ["a", "b"],
    "number": 3,
    "broken": "a\ud800b",
    "answers": {"text": ["x", "y"], "start": [1, 2]},
    "instances": [{"output": "one"}, {"output": "two"}],
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": "Bye."},
    ],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{context}\n\n{input}\n", ("What?", ["", "What?"])),
        ("{facts} {number}", ("a, b 3", ["a, b", "3"])),
        ("{{input}} {input}", ("{input} What?", ["What?"])),
        ("{answers.text}", ("x, y", ["x, y"])),
        ("{broken}", ("a?b", ["a?b"])),
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
        ("messages.content", ["Be kind.", "Hello", "Hi.", "Bye."]),
        ("context", []),
    ],
)
def test_reach(path, expected):
    assert list(reach(ROW, path, "k: o")) == expected


def test_an_unknown_field_is_reported_with_the_nearest_and_all():
    message = r"^eval\.tasks\.t\.prompt: f\.jsonl:7 has no field 'imput'; did you mean input\? \(fields: input, context"
    with pytest.raises(UserError, match=message):
        render("{imput}", Row(ROW, "f.jsonl:7"), "eval.tasks.t.prompt")
    with pytest.raises(UserError, match=r"no field 'txt'; did you mean text\? \(fields: text, start\)"):
        collect(["answers.txt"], Row(ROW, "o"), "k")


@pytest.mark.parametrize("template", ["{input", "input}", "{}", "{input!r}", "{number:03d}"])
def test_malformed_templates(template):
    with pytest.raises(UserError, match=r"^k: "):
        render(template, Row(ROW, "o"), "k")


def test_references_are_distinct_and_not_empty():
    assert collect(["r", "s"], Row({"r": [" a ", "", "b", "a"], "s": "c"}, "o"), "k") == ["a", "b", "c"]
    assert collect(["r"], Row({"r": [" ", None]}, "f:3"), "k") == []


PARTS = [{"type": "text", "text": "Where do "}, {"type": "text", "text": "eels spawn?"}]


def test_a_list_of_text_parts_is_one_text():
    row = Row({"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS[1:]}]}, "o")
    assert render("{messages.user}", row, "k")[0] == "Where do eels spawn?"
    assert collect(["messages.assistant"], row, "k") == ["eels spawn?"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [({"text": "a"}, "an object with the fields text"), (float("nan"), "NaN"), ([{"a": 1}], "an object")],
)
def test_what_is_not_text_is_rejected_with_the_name_of_the_field(value, kind):
    with pytest.raises(UserError, match=rf"^k: o: field 'answer' is {kind}.*name another field"):
        collect(["answer"], Row({"answer": value}, "o"), "k")


def test_rows_without_references_are_counted_in_one_message(jsonl):
    rows = [{"input": "a", "references": ["b"]}, {"input": "c", "references": [""]}, {"input": "d", "references": []}]
    with pytest.raises(UserError, match=r"^eval\.tasks\.t\.references: 2 of 3 rows have no reference.*line 2;"):
        load_task("t", jsonl(rows))


def test_fields_with_other_names_are_answered_with_the_settings_that_read_them(jsonl):
    setting = r"; set e\.g\. eval\.tasks\.t\.prompt='\{puzzle\}' eval\.tasks\.t\.references=\[solved\]$"
    with pytest.raises(UserError, match=setting):
        load_task("t", jsonl([{"id": "1", "puzzle": "2, 3, 5?", "solved": "7"}]))


def test_a_rows_system_text_precedes_its_prompt_unless_the_task_has_one(jsonl):
    rows = [{"system": "Reply in Welsh.", "input": "Hello", "references": ["Shwmae"]}]
    assert load_task("t", jsonl(rows)).examples[0].messages[0] == {"role": "system", "content": "Reply in Welsh."}
    own = load_task("t", jsonl(rows, system="{system} Be brief.")).examples[0].messages
    assert own[0]["content"] == "Reply in Welsh. Be brief."


def test_fields_that_are_not_read_and_repeated_prompts_are_logged(jsonl, caplog):
    rows = [{"input": "a", "hint": "b", "references": ["x"]}, {"input": "a", "references": ["y"]}]
    caplog.set_level("INFO")
    (example,) = load_task("t", jsonl(rows)).examples
    assert example.references == ["x", "y"]
    assert "eval.tasks.t: not read: hint 1" in caplog.text
    assert "eval.tasks.t: 1 rows repeat a prompt; their references are joined" in caplog.text


def test_unicode_words_are_part_of_the_digest(jsonl, caplog):
    caplog.set_level("INFO")
    latin, greek = (load_task("t", jsonl([{"input": "a", "references": [text]}])) for text in ("alpha", "άλφα"))
    assert "ROUGE compares 1 examples by Unicode words" in caplog.text
    assert latin.digest != greek.digest


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Name the plural.", "input": "mouse", "output": "mice"}, ["Name the plural.\n\nmouse"]),
        ({"question": "Plural of mouse?", "answer": "mice", "level": 2}, ["Plural of mouse?"]),
        ({"messages": [["user", "Hi"], ["assistant", "Yes?"], ["user", "Plural?"], ["assistant", "mice"]]}, None),
        ({"system": "Be brief.", "prompt": "Plural?", "completion": "mice"}, ["Be brief.", "Plural?"]),
    ],
)
def test_rows_in_a_shape_of_training_data_are_examples(jsonl, caplog, row, prompt):
    caplog.set_level("INFO")
    if prompt is None:
        row["messages"] = [{"role": role, "content": text} for role, text in row["messages"]]
        prompt = ["Hi", "Yes?", "Plural?"]
    (example,) = load_task("t", jsonl([row])).examples
    assert [message["content"] for message in example.messages] == prompt
    assert example.references == ["mice"]
    assert example.texts == [*prompt, "mice"]
    assert ("not read: level 1" in caplog.text) == ("level" in row)


def test_a_folder_with_splits_gives_its_test_split(tmp_path):
    for name in ("train", "test", "dev"):
        row = {"input": f"from {name}", "references": ["x"]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    task = TaskConfig(kind=TaskKind.jsonl, path=str(tmp_path))
    assert [example.messages[0]["content"] for example in load_task("t", task).examples] == ["from test"]
    assert fingerprint(task, "t") != fingerprint(TaskConfig(path=str(tmp_path), split="validation"), "t")


def test_training_rows_that_a_task_cannot_ask_for(jsonl):
    asked, answer = {"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "Noon."}
    call = {**answer, "tool_calls": [{"name": "tide", "arguments": {}}]}
    with pytest.raises(UserError, match=r"line 1 holds tools or tool calls, which a task cannot ask for"):
        load_task("t", jsonl([{"messages": [asked, call]}]))
    untrained = {"messages": [asked, answer, asked, {**answer, "content": "Bad.", "weight": 0}]}
    assert load_task("t", jsonl([untrained])).examples[0].references == ["Noon."]
    parts = {"system": [{"type": "text", "text": "Be brief."}], "input": "Tide?", "references": ["Noon."]}
    assert load_task("t", jsonl([parts])).examples[0].messages[0]["content"] == "Be brief."
