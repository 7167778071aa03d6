"""Evaluation examples: the items of the held-out modules."""

import functools
from collections import Counter
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.data.pydocs import TOPICS
from tometune.data.pydocs.entries import entries
from tometune.data.pydocs.items import Item, items
from tometune.data.pydocs.rows import quality


def examples(topic: str) -> list[dict[str, Any]]:
    """Return the examples of a topic; see the package.

    Raises:
        UserError: the topic is unknown.
    """
    if topic not in TOPICS:
        raise UserError(
            f"topic={topic}: no such documentation task{did_you_mean(topic, TOPICS)}; one of {', '.join(TOPICS)}"
        )
    seen: Counter[str] = Counter()
    found = []
    for item in _held_out():
        if item.topic == topic:
            name = item.entry.full_name
            seen[name] += 1
            found.append(_example(item, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return found


@functools.cache
def _held_out() -> tuple[Item, ...]:
    """Return the items that would be good enough for the base, each input once."""
    found: dict[tuple[str, str, str], Item] = {}
    for entry in entries(held_out_only=True):
        for item in items(entry):
            if quality([item]) > 0:
                found.setdefault((item.topic, item.context, item.input), item)
    return tuple(found.values())


def _example(item: Item, identifier: str) -> dict[str, Any]:
    """Write an item as an example."""
    references = [item.answer, *(other for other in item.others if other != item.answer)]
    context = {"context": item.context} if item.context else {}
    return {"id": identifier, "input": item.input, **context, "references": references}
