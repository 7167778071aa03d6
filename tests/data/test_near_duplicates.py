"""Near-duplicates by rensa's index, against the exact Jaccard similarity."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import conversation, files, write_jsonl
from tometune.data.conversations import normalised
from tometune.data.near_duplicates import near_duplicates, runs_of
from tometune.data.standardise import Standardised, standardise

WORDS = [f"w{number}" for number in range(3_000)]


def source_of(texts: list[str], folder: Path) -> Standardised:
    path = write_jsonl(folder / "rows.jsonl", map(conversation, texts))
    return standardise(files(path), "data.pool", folder / "cache")


def similarity(one: str, other: str) -> float:
    first, second = (set(runs_of(normalised([f"question {text} answer {text}"]))) for text in (one, other))
    return len(first & second) / len(first | second)


def test_precision_and_recall_on_planted_near_duplicates(tmp_path: Path) -> None:
    """Each text has a copy in which its last words differ, so that similarities range from 0.5 to 1."""
    generator = random.Random(0)
    texts = [generator.choices(WORDS, k=80) for _ in range(300)]
    copies = [[*text[: 80 - n % 25], *(f"x{n}.{i}" for i in range(n % 25))] for n, text in enumerate(texts) if n % 25]
    originals, copied = [" ".join(text) for text in texts], [" ".join(text) for text in copies]
    source = source_of([*originals, *copied], tmp_path)
    numbers = np.arange(len(originals) + len(copied))
    fixed, rows = (source, numbers[: len(originals)]), (source, numbers[len(originals) :])
    near, near_fixed = near_duplicates(fixed, rows, 0.8, tmp_path / "cache")
    sources = [text for number, text in enumerate(originals) if number % 25]
    exact = np.array([similarity(one, other) for one, other in zip(sources, copied, strict=True)])
    assert near.tolist() == near_fixed.tolist()
    assert near[exact >= 0.9].all()
    assert not near[exact < 0.7].any()
    both = (near & (exact >= 0.8)).sum()
    assert both >= 0.85 * (exact >= 0.8).sum()
    assert both >= 0.85 * near.sum()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_rows_are_compared_only_with_rows_that_stay(tmp_path: Path, order: list[int]) -> None:
    """Row 1 is near rows 0 and 2, which differ: whichever of the two comes first, only row 1 is dropped."""
    words = WORDS[:100]
    texts = [" ".join([*words[: 100 - changed], *(f"x{n}" for n in range(changed))]) for changed in (0, 7, 14)]
    assert similarity(texts[0], texts[1]) > 0.8 < similarity(texts[1], texts[2])
    assert similarity(texts[0], texts[2]) < 0.77
    source = source_of(texts, tmp_path)
    near, near_fixed = near_duplicates((source, np.array([], int)), (source, np.array(order)), 0.8, tmp_path / "cache")
    assert [row for row, dropped in zip(order, near, strict=True) if dropped] == [1]
    assert not near_fixed.any()
