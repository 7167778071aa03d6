import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, PoolConfig, SourceConfig, SourceKind
from tometune.config.eval import TaskConfig, TaskKind
from tometune.config.store import conf_dir
from tometune.data import pydocs
from tometune.data.mix import build_mix
from tometune.data.pydocs import modules
from tometune.data.pydocs.rows import PHRASINGS, trained_entries
from tometune.data.pydocs.text import shingles, words
from tometune.evaluation.tasks import load_task


def text_of(row):
    return " ".join(" ".join(message["content"] for message in row["messages"]).split()).casefold()


@pytest.fixture(scope="module")
def base():
    return pydocs.conversations(filtered=True)


@pytest.fixture(scope="module")
def pool():
    return pydocs.conversations(filtered=False)


def test_base_is_a_thousand_rows_of_the_pool_as_many_of_each_kind(base, pool):
    assert len(base) == 1_000
    assert Counter(row["source"] for row in base) == {f"pydocs/{topic}": 250 for topic in pydocs.TOPICS}
    texts = {text_of(row) for row in pool}
    assert all(text_of(row) in texts for row in base)


def test_pool_is_distinct_and_large_enough_for_the_largest_mix(base, pool):
    texts = {text_of(row) for row in pool}
    assert len(texts) == len(pool)
    assert len(texts - {text_of(row) for row in base}) >= 3_500


def test_rows_are_conversations_with_short_texts(base, pool):
    for row in pool:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"] == message["content"].strip() != "" for message in row["messages"])
    assert max(words(message["content"]) for row in pool for message in row["messages"]) <= 130
    answers = [message["content"] for row in base for message in row["messages"] if message["role"] == "assistant"]
    assert max(map(words, answers)) <= 25
    assert any(len(row["messages"]) == 4 for row in base)


@pytest.mark.parametrize("topic", pydocs.TOPICS)
def test_examples_are_many_and_whole(topic):
    examples = pydocs.examples(topic)
    assert len(examples) >= 60
    assert len({example["id"] for example in examples}) == len(examples)
    for example in examples:
        assert modules.is_held_out(example["id"]), example["id"]
        assert example["input"].strip()
        assert ("context" in example) == (topic == "question_answering")
        assert all(reference.strip() for reference in example["references"])
        assert len(set(example["references"])) == len(example["references"])


def test_questions_are_answered_by_their_context():
    for example in pydocs.examples("question_answering"):
        assert example["references"][0] in example["context"]


def test_summaries_are_not_given_away():
    for example in pydocs.examples("summarisation"):
        assert example["references"][0] not in example["input"]


def test_unknown_topic_names_the_nearest():
    with pytest.raises(UserError, match=r"topic=summarization: .* did you mean summarisation\?"):
        pydocs.examples("summarization")


def test_nothing_of_the_tasks_is_trained_on(pool):
    assert not any(modules.is_held_out(entry.module) for entry in trained_entries())
    trained = set().union(*(shingles(message["content"]) for row in pool for message in row["messages"]))
    answers = {message["content"].casefold() for row in pool for message in row["messages"]}
    for topic in pydocs.TOPICS:
        for example in pydocs.examples(topic):
            prompt = PHRASINGS[topic][0].format(**{"context": "", **example})
            assert trained.isdisjoint(shingles(prompt)), example["id"]
            if topic != "question_answering":
                assert example["references"][0].casefold() not in answers, example["id"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("heapq", True),
        ("_heapq", True),
        ("_collections_abc", True),
        ("collections.abc", True),
        ("pathlib._local", True),
        ("json.decoder", False),
        ("builtins", False),
        ("_pydecimal", False),
    ],
)
def test_held_out(module, expected):
    assert modules.is_held_out(module) is expected


def test_mixes_are_nested(tmp_path):
    def rows_of(rows):
        base = SourceConfig(kind=SourceKind.pydocs, filtered=True, rows=1_000)
        pool = PoolConfig(kind=SourceKind.pydocs) if rows > 1_000 else None
        mix = build_mix(DataConfig(name="pydocs", rows=rows, base=base, pool=pool), 0, tmp_path)
        assert mix.facts["base"]["dropped"] == mix.facts["base"]["mended"] == {}
        return set(mix.row_ids)

    small, middle, large = (rows_of(rows) for rows in (1_000, 2_000, 3_000))
    assert small < middle < large
    assert (len(small), len(middle), len(large)) == (1_000, 2_000, 3_000)


@pytest.mark.parametrize("topic", pydocs.TOPICS)
def test_the_task_asks_as_the_rows_do(topic):
    content = yaml.safe_load((conf_dir() / "eval" / "task" / f"pydocs_{topic}.yaml").read_text(encoding="utf-8"))
    assert (content["topic"], content["prompt"]) == (topic, PHRASINGS[topic][0])
    task = load_task(topic, TaskConfig(**{**content, "kind": TaskKind(content["kind"])}))
    assert len(task.examples) == content["limit"]
    assert not task.limited


PROBE = """
import hashlib, json, sys
from tometune.data import pydocs
fingerprint = pydocs.fingerprint()
heavy = {"torch", "transformers", "datasets", "numpy"} & set(sys.modules)
rows = [pydocs.conversations(True), pydocs.conversations(False), [pydocs.examples(topic) for topic in pydocs.TOPICS]]
imported = {"antigravity", "this", "idlelib", "turtledemo", "test", "tkinter", "turtle"} & set(sys.modules)
digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
print(fingerprint, digest, *heavy, *imported)
"""


def test_another_process_makes_the_same_and_imports_little():
    outputs = [
        subprocess.run(
            [sys.executable, *options, "-c", PROBE],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed, options in (("1", []), ("2", ["-OO"]))
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 2, outputs[0]


def test_fingerprint_names_python_and_follows_its_sources(tmp_path, monkeypatch):
    assert platform.python_version() in pydocs.fingerprint()
    for number, name in enumerate(sorted(sys.stdlib_module_names)):
        (tmp_path / f"{name}.py").write_text(f'"""Module {number}."""\n', encoding="utf-8")
    monkeypatch.setattr(modules, "library", lambda: tmp_path)
    monkeypatch.setattr(modules, "source_files", modules.source_files.__wrapped__)
    first = modules.fingerprint.__wrapped__()
    assert modules.fingerprint.__wrapped__() == first != pydocs.fingerprint()
    (tmp_path / "json.py").write_text('"""Another text."""\n', encoding="utf-8")
    assert modules.fingerprint.__wrapped__() != first


def test_python_without_sources_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "library", lambda: tmp_path)
    with pytest.raises(UserError, match="0 of the about 400 source files"):
        modules.source_files.__wrapped__()
