"""The texts that training data must not hold: fields and references, no template, no limit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.held_out import held_out_of, held_out_texts


def task(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> TaskConfig:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TaskConfig(path=str(path), prompt="Read.\n{context}\n\nAnswer: {input}", **settings)


def test_fields_and_references_without_the_words_of_the_template(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "input": "why?", "context": "since", "references": ["one", "two"], "note": "unused"},
        {"input": "how?", "context": None, "references": ["three"]},
    ]
    config = EvalConfig(tasks={"qa": task(tmp_path, rows, limit=1)}, limit=1)
    assert held_out_texts(config) == [
        *[("qa", "a", text) for text in ("since", "why?", "one", "two")],
        *[("qa", "1", text) for text in ("", "how?", "three")],
    ]


def test_rows_of_one_prompt_are_one_example(tmp_path: Path) -> None:
    rows = [{"id": name, "input": "why?", "context": "c", "references": [name]} for name in "ab"]
    found = held_out_of("qa", task(tmp_path, rows))
    assert {example for _, example, _ in found} == {"a"}
    assert {"a", "b"} <= {text for _, _, text in found}


def test_the_two_parts_of_the_documentation_are_told_apart() -> None:
    parts = {
        split: held_out_of("s", TaskConfig(kind=TaskKind.pydocs, topic="summarisation", split=split))
        for split in ("test", "validation")
    }
    names = {split: {example for _, example, _ in texts} for split, texts in parts.items()}
    assert names["test"]
    assert names["validation"]
    assert not names["test"] & names["validation"]


def test_what_is_wrong_is_told_as_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval\.tasks\.qa\.prompt: .*line 1 has no field 'context'"):
        held_out_of("qa", task(tmp_path, [{"input": "x", "references": ["y"]}]))
    with pytest.raises(UserError, match=r"no such file"):
        held_out_of("qa", TaskConfig(path=str(tmp_path / "nowhere.jsonl")))
