"""How docstrings become items: small texts with known results."""

import doctest

import pytest

from tometune.data.pydocs import entries, modules, text
from tometune.data.pydocs.entries import parse
from tometune.data.pydocs.items import items
from tometune.data.pydocs.questions import questions
from tometune.data.pydocs.rows import quality

SOURCE = '''
"""Tools for tea.

This module boils water. It has no other use, and it wants a kettle to be near.
"""

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
def tea():
    return {entry.name: entry for entry in parse("tea", SOURCE)}


@pytest.mark.parametrize("module", [text, modules])
def test_docstrings_tell_the_truth(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_entries_of_a_source(tea):
    assert {name: entry.kind for name, entry in tea.items()} == {
        "": "module",
        "Pot": "class",
        "Pot.level": "property",
        "Pot.pour": "method",
    }
    assert tea[""].summary == "Tools for tea."
    assert tea[""].body[0].startswith("This module boils water.")
    assert tea["Pot"].call == "tea.Pot(size=2, *, lid='(a, b)', **rest)"
    assert tea["Pot.level"].call == "tea.Pot.level"
    assert tea["Pot.pour"].parameters == ("cup", "amount=(1, 2)")
    assert tea["Pot.pour"].code == (
        "async def pour(self, cup, /, amount=(1, 2)):\n    return await self._pour(cup, amount)"
    )


def test_a_class_without_a_constructor_has_no_known_parameters():
    (entry,) = parse("tea", 'class Cup:\n    """A cup."""')
    assert entry.parameters is None
    assert entry.call == "tea.Cup"


def test_items_of_an_entry(tea):
    found = list(items(tea["Pot.pour"]))
    by_topic = {item.topic: item for item in found}
    summary = by_topic["summarisation"]
    assert summary.answer == "Pour brewed leaves from the pot into a cup."
    assert summary.input.startswith("tea.Pot.pour(cup, amount=(1, 2)): If the pot is empty")
    assert ">>>" not in summary.input
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


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Raises a KeyError for keys that are not there.", "When is KeyError raised?"),
        ("Returns a list of all the cups.", "What does pour return?"),
        ("The optional size argument is the number of cups.", "What is said about size?"),
        ("A cup is a small bowl with an ear.", "What is a cup?"),
        ("When the pot is full, nothing is done at all.", "What happens when the pot is full?"),
        ("If it is full, nothing is done at all.", None),
        ("If given, nothing is done at all.", None),
        ("Nothing here answers any question.", None),
        ("Returns a list", None),
    ],
)
def test_questions(sentence, question):
    found = [found.text for found in questions("pour", ["size"], [sentence])]
    assert found == ([question] if question else [])


@pytest.mark.parametrize(
    ("doc", "summary", "body"),
    [
        ("One line.", "One line.", []),
        ("First, e.g. this. Second one.", "First, e.g. this.", ["Second one."]),
        ("len(obj) -> int\n\nReturn the length.", "Return the length.", []),
        ("f(x)\nReturn x. Always.", "Return x.", ["Always."]),
        (":param x: nothing", "", []),
        ("    indented\n\nText.", "", ["Text."]),
        ("len(obj) -> int", "", []),
    ],
)
def test_prose(doc, summary, body):
    assert text.prose(doc) == (summary, body)


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [("A cup.", True), ("a cup.", False), ("A cup", False), ("A (cup.", False), ("Cups, pots, etc.", False)],
)
def test_is_sentence(sentence, whole):
    assert text.is_sentence(sentence) is whole


def test_quality_prefers_ordinary_words_and_refuses_the_private(tea):
    def of(source):
        (entry,) = parse("tea", source)
        return quality([next(item for item in items(entry) if item.topic == "data_to_text")])

    plain = of('def f():\n    """Return the temperature of boiling water."""')
    technical = of('def f():\n    """Return boiling temperature of water_2 in K/m."""')
    private = of('def _f():\n    """Return the temperature of boiling water."""')
    broken = of('def f():\n    """Return the temperature of boiling water"""')
    assert plain == 1.0 > technical > private == broken == 0.0


def test_native_modules_are_read_with_their_signatures():
    found = {entry.full_name: entry for entry in entries.entries()}
    assert found["math.comb"].call == "math.comb(n, k)"
    assert found["sorted"].call.startswith("sorted(iterable, *, key=None")
    assert found["str.join"].call == "str.join(iterable)"


def test_held_out_entries_are_the_same_whether_the_others_are_read_or_not():
    every = [entry for entry in entries.entries() if modules.is_held_out(entry.module)]
    assert list(entries.entries(held_out_only=True)) == every
