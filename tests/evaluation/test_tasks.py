import json

import pytest

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.tasks import load_task, load_tasks, texts_of_task

ROWS = [{"id": f"q{n}", "input": f"Question {n}?", "references": [f"Answer {n}."]} for n in range(50)]


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
    assert not load_task("t", config, 50).limited


def test_digest_follows_what_changes_a_score(jsonl):
    def digest(rows=ROWS, limit=None, **settings):
        return load_task("t", jsonl(rows, **settings), limit).digest

    same = [digest(), digest(description="other"), digest(limit=50)]
    assert len(set(same)) == 1
    other = [
        digest(version=2),
        digest(max_new_tokens=9),
        digest(metrics=["rouge", "bleu"]),
        digest(prompt="Q {input}"),
        digest(limit=5),
        digest(ROWS[1:]),
    ]
    assert len({*same, *other}) == 7


def test_rows_of_one_prompt_are_one_example(jsonl):
    rows = [{"input": "a", "references": text} for text in ("x", "y", "x")] + [{"input": "b", "references": "z"}]
    task = load_task("t", jsonl(rows))
    assert [(example.id, example.references) for example in task.examples] == [("0", ["x", "y"]), ("3", ["z"])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "input": "a", "references": ["x"]}, {"id": "1", "input": "b", "references": ["x"]}], "id '1'"),
        ([{"input": " ", "references": ["x"]}], r"prompt: .*task\.jsonl, line 1 gives an empty prompt"),
        ([{"input": "a", "references": []}], r"references: .*task\.jsonl, line 1 has no reference"),
        ([{"input": "a", "reference": "x"}], r"no field 'references'; did you mean reference\?"),
    ],
)
def test_bad_rows(jsonl, rows, message):
    with pytest.raises(UserError, match=message):
        load_task("t", jsonl(rows))


def test_all_tasks_of_a_config(jsonl):
    tasks = {"a": jsonl(ROWS, "a.jsonl"), "b": jsonl(ROWS[:3], "b.jsonl")}
    loaded = load_tasks(EvalConfig(tasks=tasks, limit=5))
    assert [(task.name, len(task.examples), task.limited) for task in loaded] == [("a", 5, True), ("b", 3, False)]


def task(tmp_path, rows, **settings):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TaskConfig(path=str(path), prompt="Read.\n{context}\n\nAnswer: {input}", **settings)


def test_texts_are_fields_and_references_without_the_words_of_the_template(tmp_path):
    rows = [
        {"id": "a", "input": "why?", "context": "since", "references": ["one", "two"], "note": "unused"},
        {"input": "how?", "context": None, "references": ["three"]},
    ]
    assert texts_of_task("qa", task(tmp_path, rows, limit=1)) == [
        *[("qa", "a", text) for text in ("since", "why?", "one", "two")],
        *[("qa", "1", text) for text in ("", "how?", "three")],
    ]


def test_texts_of_rows_with_one_prompt_belong_to_one_example(tmp_path):
    rows = [{"id": name, "input": "why?", "context": "c", "references": [name]} for name in "ab"]
    found = texts_of_task("qa", task(tmp_path, rows))
    assert {example for _, example, _ in found} == {"a"}
    assert {"a", "b"} <= {text for _, _, text in found}


def test_the_splits_of_the_documentation_share_no_example():
    parts = {
        split: texts_of_task("s", TaskConfig(kind=TaskKind.pydocs, topic="summarisation", split=split))
        for split in ("test", "validation")
    }
    names = {split: {example for _, example, _ in texts} for split, texts in parts.items()}
    assert names["test"]
    assert names["validation"]
    assert not names["test"] & names["validation"]


def test_texts_of_a_bad_task(tmp_path):
    with pytest.raises(UserError, match=r"eval\.tasks\.qa\.prompt: .*line 1 has no field 'context'"):
        texts_of_task("qa", task(tmp_path, [{"input": "x", "references": ["y"]}]))
    with pytest.raises(UserError, match=r"no such file"):
        texts_of_task("qa", TaskConfig(path=str(tmp_path / "nowhere.jsonl")))
