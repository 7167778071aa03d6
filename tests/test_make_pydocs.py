"""scripts/make_pydocs.py: what it makes of a docstring, and that it reproduces the shipped file."""

import doctest
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import make_pydocs

TEA = '''
class Pot(Vessel):
    """A pot for tea."""

    def __init__(self, size: int = 2, *, lid="(a, b)", **rest):
        """Ignored."""

    @property
    def level(self):
        """How full the pot is, from nothing to everything."""
        return self._level

    async def pour(self, cup, /, amount=(1, 2)):
        """Pour brewed leaves from the pot into a cup.

        If the pot is empty, a ValueError is raised. By default, the cup is filled.
        The amount is measured in spoons of tea.

            >>> pot.pour(cup)
        """
        return await self._pour(cup, amount)

def undocumented(): pass
'''


@pytest.fixture
def tea() -> dict[str, Any]:
    return {entry.name: entry for entry in make_pydocs.parse("tea", TEA)}


def test_it_reproduces_the_shipped_file(tmp_path: Path) -> None:
    shipped = gzip.decompress(make_pydocs.SHIPPED.read_bytes())
    header = json.loads(shipped.partition(b"\n")[0])
    if make_pydocs.made_from() != header:
        pytest.skip(f"made from {header['python']}, sources {header['sources']}")
    target = tmp_path / "made.jsonl.gz"
    # A process of its own, because pytest replaces documented functions such as sys.unraisablehook.
    subprocess.run([sys.executable, make_pydocs.__file__, "--out", target], check=True)
    made = target.read_bytes()
    assert gzip.decompress(made) == shipped  # builds of zlib compress the same lines to other bytes
    assert made[:10] == make_pydocs.SHIPPED.read_bytes()[:10], "no time and no name in the header"
    assert not any(make_pydocs.is_held_out(entry.module) for entry in make_pydocs.trained_entries())


def test_doctests() -> None:
    result = doctest.testmod(make_pydocs)
    assert result.attempted
    assert not result.failed


def test_held_out_modules() -> None:
    names = ("heapq", "_heapq", "collections.abc", "json.decoder", "_pydecimal")
    assert [name for name in names if make_pydocs.is_held_out(name)] == ["heapq", "_heapq", "collections.abc"]


def test_entries_of_a_source(tea: dict[str, Any]) -> None:
    assert {name: entry.kind for name, entry in tea.items()} == {
        "Pot": "class",
        "Pot.level": "property",
        "Pot.pour": "method",
    }
    assert tea["Pot"].call == "tea.Pot(size=2, *, lid='(a, b)', **rest)"
    assert tea["Pot.level"].call == "tea.Pot.level"
    assert tea["Pot.pour"].code == (
        "async def pour(self, cup, /, amount=(1, 2)):\n    return await self._pour(cup, amount)"
    )


def test_items_of_an_entry(tea: dict[str, Any]) -> None:
    found = list(make_pydocs.items(tea["Pot.pour"]))
    by_topic = {item.topic: item for item in found}
    assert by_topic["summarisation"].answer == "Pour brewed leaves from the pot into a cup."
    assert by_topic["summarisation"].input.startswith("tea.Pot.pour(cup, amount=(1, 2)): If the pot is empty")
    assert ">>>" not in by_topic["summarisation"].input
    assert by_topic["data_to_text"].input == (
        "method: tea.Pot.pour\nparameters: cup, amount=(1, 2)\nkeywords: brewed, leaves, pour"
    )
    assert by_topic["instruction_following"].input.endswith(tea["Pot.pour"].code)
    asked = {item.input: (item.answer, item.others) for item in found if item.topic == "question_answering"}
    assert asked == {
        "What happens if the pot is empty?": (
            "If the pot is empty, a ValueError is raised.",
            ("A ValueError is raised.",),
        ),
        "What happens by default?": ("By default, the cup is filled.", ("The cup is filled.",)),
        "What is said about amount?": ("The amount is measured in spoons of tea.", ()),
    }


def test_quality_prefers_ordinary_words_and_refuses_the_private() -> None:
    def of(source: str) -> float:
        (entry,) = make_pydocs.parse("tea", source)
        quality: float = make_pydocs.quality([next(make_pydocs.fact_items(entry))])
        return quality

    plain = of('def f():\n    """Return the temperature of boiling water."""')
    technical = of('def f():\n    """Return boiling temperature of water_2 in K/m."""')
    private = of('def _f():\n    """Return the temperature of boiling water."""')
    broken = of('def f():\n    """Return the temperature of boiling water"""')
    assert plain == 1.0 > technical > private == broken == 0.0
