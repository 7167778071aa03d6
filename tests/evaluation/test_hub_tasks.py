"""The shipped hub tasks, over rows with the schema of the real datasets, through the real hub client."""

import csv
import json
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tometune.config.eval import TaskConfig
from tometune.config.root import conf_dir

TASKS = ("dialogue_summarisation", "question_answering", "data_to_text", "instruction_following")
LOAD = """
import json, sys
from tometune.config.eval import TaskConfig, TaskKind
from tometune.evaluation.tasks import load_task
settings = json.loads(sys.argv[1])
for name, values in settings.items():
    values["kind"] = TaskKind(values["kind"])
    task = load_task(name, TaskConfig(**{**values, "revision": "main"}))
    print(json.dumps([name, [vars(example) for example in task.examples]]))
"""


def settings(name):
    return yaml.safe_load((conf_dir() / "eval" / "task" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TASKS)
def test_pinned_licensed_and_versioned(name):
    task = settings(name)
    assert set(task) <= {field.name for field in fields(TaskConfig)}
    assert len(task["revision"]) == 40
    assert int(task["revision"], 16)
    assert task["licence"].startswith("CC BY")
    assert task["version"] >= 1
    assert f"https://huggingface.co/datasets/{task['id']}" in (conf_dir() / f"eval/task/{name}.yaml").read_text()


def write_sets(root):
    """Write each dataset with the columns, files and README of the real one."""
    folders = {name: root / settings(name)["id"] for name in TASKS}
    for folder in folders.values():
        folder.mkdir(parents=True)
    with (folders["dialogue_summarisation"] / "test.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "dialogue", "summary", "topic"])
        for number in (1, 2, 3):
            writer.writerow([f"test_0_{number}", "#Person1#: Hi.\n#Person2#: Bye.", f"Summary {number}.", "talk"])
    squad = folders["question_answering"] / "plain_text"
    squad.mkdir()
    row = {"id": "56be", "title": "T", "context": "It is blue.", "question": "Which colour?"}
    table = pa.Table.from_pylist(
        [{**row, "answers": {"text": ["blue", "blue", "It is blue"], "answer_start": [6, 6, 0]}}]
    )
    pq.write_table(table, squad / "validation-00000-of-00001.parquet")
    files = [{"split": "validation", "path": "plain_text/validation-*"}]
    readme = yaml.safe_dump({"configs": [{"config_name": "plain_text", "data_files": files}]})
    (folders["question_answering"] / "README.md").write_text(f"---\n{readme}---\n")
    facts = folders["data_to_text"] / "default" / "test"
    facts.mkdir(parents=True)
    rows = [{"meaning_representation": "name[X], food[Y]", "human_reference": text} for text in ("X has Y.", "Y at X.")]
    pq.write_table(pa.Table.from_pylist(rows), facts / "0000.parquet")
    robots = folders["instruction_following"] / "data"
    robots.mkdir()
    talk = [("user", "Hello"), ("assistant", "Hi."), ("user", "More"), ("assistant", "No.")]
    rows = [
        {"prompt": "p", "prompt_id": "1", "category": "Chat", "messages": [{"content": c, "role": r} for r, c in turns]}
        for turns in (talk, [("system", "You are kind."), ("user", "Sing."), ("assistant", "La.")])
    ]
    pq.write_table(pa.Table.from_pylist(rows), robots / "test-00000-of-00001.parquet")


def test_rows_of_the_real_schemas_become_examples(hub, run_python, tmp_path):
    write_sets(hub.root / "datasets")
    arguments = json.dumps({name: settings(name) for name in TASKS})
    done = run_python("-c", LOAD, arguments, env=hub.env(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    tasks = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    (dialogue,) = tasks["dialogue_summarisation"]
    assert dialogue["id"] == "test_0_1"
    assert dialogue["references"] == ["Summary 1.", "Summary 2.", "Summary 3."]
    assert dialogue["messages"][0]["content"].endswith("\n\n#Person1#: Hi.\n#Person2#: Bye.")
    (question,) = tasks["question_answering"]
    assert question["references"] == ["blue", "It is blue"]
    assert "Text: It is blue.\n\nQuestion: Which colour?" in question["messages"][0]["content"]
    (facts,) = tasks["data_to_text"]
    assert facts["references"] == ["X has Y.", "Y at X."]
    chats = tasks["instruction_following"]
    assert [chat["messages"][0]["content"] for chat in chats] == ["Hello", "You are kind.\n\nSing."]
    assert [chat["references"] for chat in chats] == [["Hi."], ["La."]]
