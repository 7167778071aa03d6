import json
import subprocess
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub import Hub
from tometune.common.errors import UserError
from tometune.config.eval import TaskConfig, TaskKind
from tometune.evaluation.rows import collect, reach, read_rows, render
from tometune.evaluation.tasks import fingerprint

GOOD = '{"input": "a", "references": ["b"]}'


def test_broken_line_is_named_once(jsonl):
    task = jsonl([GOOD, "", GOOD, '{"input": ', GOOD])
    with pytest.raises(UserError, match=r"task\.jsonl, line 4: is not JSON \(Expecting value, column 10\)"):
        read_rows("eval.tasks.t", task)


def test_missing_file_empty_folder_and_empty_file(tmp_path, jsonl):
    with pytest.raises(UserError, match=r"eval\.tasks\.t\.path=.*gone\.jsonl: no such file"):
        read_rows("eval.tasks.t", TaskConfig(path=str(tmp_path / "gone.jsonl")))
    with pytest.raises(UserError, match="has no file that ends in"):
        fingerprint(TaskConfig(path=str(tmp_path)), "eval.tasks.t")
    with pytest.raises(UserError, match="has no examples"):
        read_rows("eval.tasks.t", jsonl([]))


def test_other_file_formats_are_read_as_for_training(tmp_path):
    rows = [{"input": "a", "references": ["b"]}, {"input": "c", "references": ["d"]}]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    for name in ("array.json", "table.parquet"):
        task = TaskConfig(path=str(tmp_path / name))
        assert [row.fields for row in read_rows("eval.tasks.t", task)] == rows
        assert fingerprint(task, "k") == sha256((tmp_path / name).read_bytes()).hexdigest()


def test_separators_inside_a_text_do_not_break_lines(jsonl):
    task = jsonl(['{"input": "one\u2028two\u0085three", "references": "r"}'])
    (row,) = read_rows("eval.tasks.t", task)
    assert row.fields["input"] == "one\u2028two\u0085three"


def test_fingerprints(jsonl):
    task = jsonl([GOOD])
    assert fingerprint(task, "k") == sha256(f"{GOOD}\n".encode()).hexdigest()
    assert fingerprint(jsonl([GOOD, GOOD]), "k") != fingerprint(jsonl([GOOD]), "k")
    assert fingerprint(TaskConfig(kind=TaskKind.hub, id="a/b", revision="c" * 40), "k") == f"a/b@{'c' * 40}"


def test_fingerprint_imports_nothing_heavy():
    code = (
        "import sys; from tometune.config.eval import TaskConfig, TaskKind\n"
        "from tometune.evaluation.tasks import fingerprint\n"
        "fingerprint(TaskConfig(kind=TaskKind.hub, id='a/b', revision='c' * 40), 'k')\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'evaluate', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HUB = """
import json, sys
from tometune.common.errors import UserError
from tometune.config.eval import TaskConfig, TaskKind
from tometune.evaluation.rows import read_rows
settings = json.loads(sys.argv[1])
try:
    rows = read_rows("eval.tasks.t", TaskConfig(kind=TaskKind.hub, **settings))
    print(json.dumps([row.fields for row in rows]))
except UserError as error:
    print("UserError", error)
"""


@pytest.fixture
def load(hub: Hub, run_python, tmp_path):
    """Load a dataset of the local hub in a process of its own (the hub's address is read at import)."""

    def run(**settings: object) -> str:
        env = hub.env(tmp_path / "home")
        done = run_python("-c", HUB, json.dumps(settings), env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    return run


def test_hub_dataset_and_what_can_be_wrong_with_it(hub, load):
    """The layout of the hub's own parquet copies, as for `data_to_text`: one folder per split, with other files."""
    for split, text in (("train", "no"), ("test", "yes")):
        folder = hub.root / "datasets" / "user" / "facts" / "default" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"meaning_representation": [text]}), folder / "0000.parquet")
        (folder / "index.duckdb").write_bytes(b"not read")
    assert json.loads(load(id="user/facts", split="test")) == [{"meaning_representation": "yes"}]
    assert "eval.tasks.t.split" in load(id="user/facts", split="tset")
    assert "eval.tasks.t.subset" in load(id="user/facts", subset="other")
    assert load(id="user/gone").startswith("UserError eval.tasks.t.id=user/gone")
    script = hub.root / "datasets" / "user" / "scripted"
    script.mkdir()
    (script / "scripted.py").write_text("raise SystemExit('ran')")
    assert "scripts are no longer supported" in load(id="user/scripted")


def test_an_unreachable_hub_is_reported_at_once(run_python, tmp_path):
    """In one line, without the client's retries, which take 23 s and print a dozen lines."""
    settings = '{"id": "user/facts", "revision": "' + "a" * 40 + '"}'
    done = run_python("-c", HUB, settings, timeout=60)
    assert done.stdout.startswith("UserError eval.tasks.t.id=user/facts: the model hub cannot be reached")
    assert "Retry" not in done.stderr


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


def test_an_unknown_field_is_reported_with_the_nearest_and_all():
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
