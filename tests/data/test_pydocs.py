"""The embedded documentation: its file, its rows, its tasks."""

import re
from collections import Counter
from typing import Any

import pytest
import yaml

from tests.test_make_pydocs import make_pydocs
from tometune.common.errors import UserError
from tometune.config.eval import TaskConfig, TaskKind
from tometune.config.root import conf_dir
from tometune.data import pydocs
from tometune.evaluation.tasks import load_task

Row = dict[str, Any]


def text_of(row: Row) -> str:
    return " ".join(" ".join(message["content"] for message in row["messages"]).split()).casefold()


@pytest.fixture(scope="module")
def pool() -> list[Row]:
    return pydocs.conversations(filtered=False)


def test_the_file_is_small_and_pinned() -> None:
    assert pydocs.FILE.stat().st_size < 1_000_000
    assert pydocs.fingerprint() == "d029ea626d2469804732", "every run on this data gets a new id"
    notice = pydocs.FILE.with_name("pydocs.NOTICE.txt").read_text(encoding="utf-8")
    assert "Python 3.11.7" in notice
    assert "Python Software Foundation;\nAll Rights Reserved" in notice


def test_the_base_is_1000_rows_of_the_pool_balanced_by_topic(pool: list[Row]) -> None:
    base = pydocs.conversations(filtered=True)
    assert (len(base), len(pool)) == (1_000, 12_781)
    assert Counter(row["source"] for row in base) == {f"pydocs/{topic}": 250 for topic in pydocs.TOPICS}
    texts = {text_of(row) for row in pool}
    assert len(texts) == len(pool), "no row is there twice"
    assert {text_of(row) for row in base} <= texts
    for row in pool:
        assert row.keys() == {"messages", "source"}
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"] == message["content"].strip() != "" for message in row["messages"])


@pytest.mark.nightly  # the content of the file is pinned
@pytest.mark.parametrize("topic", pydocs.TOPICS)
def test_examples_are_complete_and_splits_are_disjoint(topic: str) -> None:
    examples = pydocs.examples(topic)
    assert len({example["id"] for example in examples}) == len(examples)
    texts = [text for example in examples for text in [example["input"], *example["references"]]]
    assert all(text.strip() for text in texts)
    test, validation = (
        {re.sub(r"-\d+$", "", example["id"]) for example in examples if example["split"] == split}
        for split in ("test", "validation")
    )
    assert not test & validation
    assert len(test) > 2 * len(validation) > 30


@pytest.mark.nightly  # the content of the file is pinned
def test_no_text_of_the_tasks_is_in_the_training_data(pool: list[Row]) -> None:
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
def test_the_prompts_of_tasks_and_rows_agree(topic: str) -> None:
    content = yaml.safe_load((conf_dir() / "eval" / "task" / f"pydocs_{topic}.yaml").read_text(encoding="utf-8"))
    assert (content["topic"], content["prompt"]) == (topic, make_pydocs.PHRASINGS[topic][0])
    task = load_task(topic, TaskConfig(**{**content, "kind": TaskKind(content["kind"])}))
    assert len(task.examples) == content["limit"]
    assert not task.limited


def test_unknown_topics_and_splits_are_rejected() -> None:
    with pytest.raises(UserError, match=r"topic=summarization: .* did you mean summarisation\?"):
        pydocs.examples("summarization")
    task = TaskConfig(kind=TaskKind.pydocs, topic="summarisation", prompt="{input}", split="train")
    with pytest.raises(UserError, match=r"eval\.tasks\.s\.split=train: the documentation has the splits test and"):
        load_task("s", task)
