"""The embedded documentation: its file, its rows, its tasks."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_make_pydocs import make_pydocs
from tometune.common.errors import UserError
from tometune.config.data import DataConfig, PoolConfig, SourceConfig, SourceKind
from tometune.config.eval import TaskConfig, TaskKind
from tometune.config.root import conf_dir
from tometune.data import pydocs
from tometune.data.mix import build_mix
from tometune.evaluation.tasks import load_task

Row = dict[str, Any]


def text_of(row: Row) -> str:
    return " ".join(" ".join(message["content"] for message in row["messages"]).split()).casefold()


@pytest.fixture(scope="module")
def base() -> list[Row]:
    return pydocs.conversations(filtered=True)


@pytest.fixture(scope="module")
def pool() -> list[Row]:
    return pydocs.conversations(filtered=False)


def test_the_file_is_small_and_identifies_the_runs_on_it() -> None:
    assert pydocs.FILE.stat().st_size < 1_000_000
    assert pydocs.fingerprint() == "d029ea626d2469804732", "every run on this data gets a new id"
    notice = pydocs.FILE.with_name("pydocs.NOTICE.txt").read_text(encoding="utf-8")
    assert "Python 3.11.7" in notice
    assert "Python Software Foundation;\nAll Rights Reserved" in notice


def test_the_base_is_a_thousand_rows_of_the_pool_as_many_of_each_topic(base: list[Row], pool: list[Row]) -> None:
    assert (len(base), len(pool)) == (1_000, 12_781)
    assert Counter(row["source"] for row in base) == {f"pydocs/{topic}": 250 for topic in pydocs.TOPICS}
    texts = {text_of(row) for row in pool}
    assert len(texts) == len(pool), "no row is there twice"
    assert {text_of(row) for row in base} <= texts


def test_rows_are_conversations_with_short_texts(base: list[Row], pool: list[Row]) -> None:
    for row in pool:
        assert row.keys() == {"messages", "source"}
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"] == message["content"].strip() != "" for message in row["messages"])
    assert max(len(message["content"].split()) for row in pool for message in row["messages"]) <= 130
    assert any(len(row["messages"]) == 4 for row in base)


def test_mixes_are_nested(tmp_path: Path) -> None:
    def rows_of(rows: int) -> set[str]:
        base = SourceConfig(kind=SourceKind.pydocs, filtered=True, rows=1_000)
        pool = PoolConfig(kind=SourceKind.pydocs) if rows > 1_000 else None
        mix = build_mix(DataConfig(name="pydocs", rows=rows, base=base, pool=pool), 0, tmp_path)
        assert mix.facts["base"]["dropped"] == mix.facts["base"]["mended"] == {}
        return set(mix.row_ids)

    small, middle, large = (rows_of(rows) for rows in (1_000, 2_000, 3_000))
    assert small < middle < large
    assert (len(small), len(middle), len(large)) == (1_000, 2_000, 3_000)


@pytest.mark.parametrize("topic", pydocs.TOPICS)
def test_examples_are_whole_and_no_object_is_in_both_splits(topic: str) -> None:
    examples = pydocs.examples(topic)
    assert len({example["id"] for example in examples}) == len(examples)
    for example in examples:
        assert example["input"].strip()
        assert ("context" in example) == (topic == "question_answering")
        assert example["references"][0] in example.get("context", example["references"][0])
        assert topic != "summarisation" or example["references"][0] not in example["input"], "given away"
        assert all(reference.strip() for reference in example["references"])
        assert len(set(example["references"])) == len(example["references"])
    test, validation = (
        {re.sub(r"-\d+$", "", example["id"]) for example in examples if example["split"] == split}
        for split in ("test", "validation")
    )
    assert not test & validation
    assert len(test) > 2 * len(validation) > 30


def test_nothing_of_the_tasks_is_trained_on(pool: list[Row]) -> None:
    trained = set().union(*(make_pydocs.shingles(message["content"]) for row in pool for message in row["messages"]))
    answers = {message["content"].casefold() for row in pool for message in row["messages"]}
    for topic in pydocs.TOPICS:
        for example in pydocs.examples(topic):
            assert make_pydocs.is_held_out(example["id"]), example["id"]
            prompt = make_pydocs.PHRASINGS[topic][0].format(**{"context": "", **example})
            assert trained.isdisjoint(make_pydocs.shingles(prompt)), example["id"]
            if topic != "question_answering":
                assert example["references"][0].casefold() not in answers, example["id"]
    prompts = (message["content"] for row in pool for message in row["messages"])
    facts = (re.search(r"^(?:module|class|method|property|function): (\S+)$", text, re.M) for text in prompts)
    named = [match[1] for match in facts if match]
    assert len(named) > 3_000
    assert not [name for name in named if make_pydocs.is_held_out(name)]


@pytest.mark.parametrize("topic", pydocs.TOPICS)
def test_the_task_asks_as_the_rows_do(topic: str) -> None:
    content = yaml.safe_load((conf_dir() / "eval" / "task" / f"pydocs_{topic}.yaml").read_text(encoding="utf-8"))
    assert (content["topic"], content["prompt"]) == (topic, make_pydocs.PHRASINGS[topic][0])
    task = load_task(topic, TaskConfig(**{**content, "kind": TaskKind(content["kind"])}))
    assert len(task.examples) == content["limit"]
    assert not task.limited


def test_unknown_topics_and_splits_are_refused() -> None:
    with pytest.raises(UserError, match=r"topic=summarization: .* did you mean summarisation\?"):
        pydocs.examples("summarization")
    task = TaskConfig(kind=TaskKind.pydocs, topic="summarisation", prompt="{input}", split="train")
    with pytest.raises(UserError, match=r"eval\.tasks\.s\.split=train: the documentation has the splits test and"):
        load_task("s", task)
