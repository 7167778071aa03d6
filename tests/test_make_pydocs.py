"""scripts/make_pydocs.py: what it makes of a docstring, and that it reproduces the shipped file."""

import doctest
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import make_pydocs

TEA = '''
class Pot:
    async def pour(self, cup, /, amount=(1, 2)):
        """Pour brewed leaves from the pot into a cup.

        If the pot is empty, a ValueError is raised. By default, the cup is filled.
        The amount is measured in spoons of tea.

            >>> pot.pour(cup)
        """
        return await self._pour(cup, amount)
'''


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


def test_items_of_a_docstring() -> None:
    """Where the shipped file cannot be reproduced, because the Python is another one."""
    (entry,) = make_pydocs.parse("tea", TEA)
    found = list(make_pydocs.items(entry))
    by_topic = {item.topic: item for item in found}
    assert by_topic["summarisation"].answer == "Pour brewed leaves from the pot into a cup."
    assert by_topic["summarisation"].input.startswith("tea.Pot.pour(cup, amount=(1, 2)): If the pot is empty")
    assert ">>>" not in by_topic["summarisation"].input
    assert by_topic["data_to_text"].input == (
        "method: tea.Pot.pour\nparameters: cup, amount=(1, 2)\nkeywords: brewed, leaves, pour"
    )
    assert by_topic["instruction_following"].input.endswith(entry.code)
    asked = {item.input: (item.answer, item.others) for item in found if item.topic == "question_answering"}
    assert asked == {
        "What happens if the pot is empty?": (
            "If the pot is empty, a ValueError is raised.",
            ("A ValueError is raised.",),
        ),
        "What happens by default?": ("By default, the cup is filled.", ("The cup is filled.",)),
        "What is said about amount?": ("The amount is measured in spoons of tea.", ()),
    }
