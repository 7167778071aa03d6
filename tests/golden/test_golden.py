"""What a refactoring must not change, recomputed and compared with the files in this folder.

Where a change is meant: `python -m tests.golden.record NAME …` writes them again, and `git diff` shows what it did.
"""

import json
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.compute import HERE, SECTIONS, workplace

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="recorded on a machine without a GPU")


@pytest.fixture
def place(tmp_path: Path):
    with workplace(tmp_path.resolve()) as folder:
        yield folder


def golden(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def check(name: str, place: Path) -> None:
    texts = golden(name).splitlines(), SECTIONS[name](place).splitlines()
    difference = "\n".join(unified_diff(*texts, f"recorded {name}", "computed", n=1, lineterm=""))
    assert not difference, f"\n{difference}"


@pytest.mark.parametrize("name", ["run_ids.txt", "mixes.txt", "tables.txt"])
def test_text(name: str, place: Path) -> None:
    check(name, place)


@pytest.mark.smollm2
def test_tokens(place: Path) -> None:
    check("tokens.json", place)


@no_gpu
def test_errors(place: Path) -> None:
    check("errors.txt", place)


@no_gpu
def test_smoke_runs(place: Path) -> None:
    """Bytes where they were recorded; on another kind of CPU or with another torch, all but the last digits."""
    made, kept = json.loads(SECTIONS["smoke_runs.json"](place)), json.loads(golden("smoke_runs.json"))
    same = made.pop("machine") == kept.pop("machine")
    assert made == (kept if same else {line: Nearly(run) for line, run in kept.items()})


class Nearly(dict[str, Any]):
    """A run that is equal to one whose weights and answers differ, and whose numbers differ by less than a percent."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, dict)
        points = zip(self["metrics"], other["metrics"], strict=True)
        return self["data"] == other["data"] and all(
            kept == pytest.approx(made, rel=0.01, abs=0.01) for kept, made in points
        )
