"""The shipped hub tasks, over rows with the schema of the real datasets, through the real hub client."""

import io
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
from tometune.common.errors import UserError
from tometune.config.eval import TaskConfig, TaskKind
from tometune.evaluation.tasks import load_task
for name, values in json.loads(sys.argv[1]).items():
    try:
        found = load_task(name, TaskConfig(**{**values, "kind": TaskKind.hub})).examples
        print(json.dumps([name, [[one.id, one.messages[0]["content"], one.references] for one in found]]))
    except UserError as error:
        print(json.dumps([name, str(error)]))
"""


def settings(name):
    return yaml.safe_load((conf_dir() / "eval" / "task" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TASKS)
def test_pinned_licensed_and_versioned(name):
    task = settings(name)
    assert set(task) <= {field.name for field in fields(TaskConfig)}
    assert len(f"{int(task['revision'], 16):040x}") == len(task["revision"]) == 40
    assert task["licence"].startswith("CC BY")
    assert task["version"] >= 1
    assert f"https://huggingface.co/datasets/{task['id']}" in (conf_dir() / f"eval/task/{name}.yaml").read_text()


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def chat(*turns):
    messages = [{"content": content, "role": role} for role, content in turns]
    return {"prompt": "p", "prompt_id": "1", "category": "Chat", "messages": messages}


def write_sets(hub):
    """Write each dataset with the columns, files and README of the real one."""
    lines = "".join(f'test_0_{n},"#Person1#: Hi.\n#Person2#: Bye.",Summary {n}.,talk\n' for n in (1, 2, 3))
    split = {"split": "validation", "path": "plain_text/validation-*"}
    card = yaml.safe_dump({"configs": [{"config_name": "plain_text", "data_files": [split]}]})
    answers = {"text": ["blue", "blue", "It is blue"], "answer_start": [6, 6, 0]}
    question = {"id": "56be", "title": "T", "context": "It is blue.", "question": "Which colour?", "answers": answers}
    data = "name[X], food[Y]"
    facts = [{"meaning_representation": data, "human_reference": text} for text in ("X has Y.", "Y at X.")]
    talk = chat(("user", "Hello"), ("assistant", "Hi."), ("user", "More"), ("assistant", "No."))
    song = chat(("system", "You are kind."), ("user", "Sing."), ("assistant", "La."))
    questions = {"README.md": f"---\n{card}---\n", "plain_text/validation-00000-of-00001.parquet": parquet([question])}
    files = {
        "dialogue_summarisation": {"test.csv": f"id,dialogue,summary,topic\n{lines}"},
        "question_answering": questions,
        "data_to_text": {"default/test/0000.parquet": parquet(facts), "default/test/index.duckdb": b"not read"},
        "instruction_following": {"data/test-00000-of-00001.parquet": parquet([talk, song])},
    }
    for name, content in files.items():
        hub.add_dataset(settings(name)["id"], content)


def test_rows_of_the_real_schemas_become_examples(hub, run_python, tmp_path):
    write_sets(hub)
    wanted = {name: settings(name) | {"revision": "main"} for name in TASKS}
    wanted["wrong"] = wanted["data_to_text"] | {"split": "tset"}
    done = run_python("-c", LOAD, json.dumps(wanted), env=hub.env(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    tasks = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert "eval.tasks.wrong.split" in tasks.pop("wrong")
    ((dialogue, asked, _),), ((_, question, _),), _, chats = (tasks[name] for name in TASKS)
    assert dialogue == "test_0_1"
    assert asked.endswith("\n\n#Person1#: Hi.\n#Person2#: Bye.")
    assert "Text: It is blue.\n\nQuestion: Which colour?" in question
    assert [prompt for _, prompt, _ in chats] == ["Hello", "You are kind.\n\nSing."]
    assert [references for name in TASKS for _, _, references in tasks[name]] == [
        ["Summary 1.", "Summary 2.", "Summary 3."],
        ["blue", "It is blue"],
        ["X has Y.", "Y at X."],
        ["Hi."],
        ["La."],
    ]


def test_an_unreachable_hub_is_reported_at_once(run_python):
    """In one line, without the client's retries, which take 23 s and print a dozen lines."""
    done = run_python("-c", LOAD, json.dumps({"t": {"id": "user/facts", "revision": "a" * 40}}), timeout=60)
    assert json.loads(done.stdout)[1].startswith("eval.tasks.t.id=user/facts: the model hub cannot be reached")
    assert "Retry" not in done.stderr
