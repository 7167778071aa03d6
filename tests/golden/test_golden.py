"""What a refactoring must not change, recomputed and compared with the files in this folder.

Where a change is meant, `TOMETUNE_RECORD=1 pytest tests/golden -k NAME` writes a file again, and `git diff` shows what
it did.
"""

import gc
import json
import os
from difflib import unified_diff
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.golden import cases
from tests.golden.compute import HERE, SECTIONS
from tests.whole import OURS

RECORD = "TOMETUNE_RECORD" in os.environ
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="recorded on a machine without a GPU")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder with the files of the cases, of a user who has set nothing in the environment."""
    folder = tmp_path.resolve()
    cases.write_files(folder)
    monkeypatch.chdir(folder)
    unset = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    gc.disable()  # to compose a config makes many objects and no garbage worth collecting: a third of the time
    with mock.patch.dict(os.environ, {**unset, "HOME": str(folder), "TOMETUNE_CACHE": f"{folder}/cache"}, clear=True):
        yield folder
    gc.enable()


def computed(name: str, place: Path) -> tuple[str, str]:
    """Return what is recorded and what is computed now."""
    text = SECTIONS[name](place)
    if RECORD:
        (HERE / name).write_text(text, encoding="utf-8")
    return (HERE / name).read_text(encoding="utf-8"), text


def check(name: str, place: Path) -> None:
    texts = (text.splitlines() for text in computed(name, place))
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
    kept, made = map(json.loads, computed("smoke_runs.json", place))
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
