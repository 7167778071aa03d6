"""How long the answers are: ROUGE falls where they are much shorter than the references, whatever they say."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

MUCH = 2.0
"""Times as long as another cell's answers: then it is told."""


def answer_tokens(records: Sequence[Mapping[str, Any]], stage: str, tasks: Sequence[str]) -> dict[str, float | None]:
    """Return the mean generated tokens of an answer by task, over runs; None where a record does not tell.

    Args:
        records: run.json of each run.
        stage: `base` or `tuned`.
        tasks: their names.
    """
    return {task: _mean([record["eval"][stage]["tasks"][task] for record in records]) for task in tasks}


def _mean(scored: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over runs of one task."""
    known = [task["tokens"] / task["examples"] for task in scored if task.get("tokens") is not None]
    return round(fmean(known), 2) if known and len(known) == len(scored) else None


def told(table: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Say of which tasks the answers of two compared cells differ much in length.

    Args:
        table: the content of table.json.
        pairs: the cells that are asked about.
    """
    rows = {row["cell"]: row["answer_tokens"] for row in table["rows"]}
    found = []
    for a, b in pairs:
        for task in table["tasks"]:
            one, other = rows[a][task], rows[b][task]
            if one is not None and other is not None and max(one, other) > MUCH * max(min(one, other), 0.5):
                found.append(
                    f"Length: an answer of {task} has {one:.0f} tokens after {a} and {other:.0f} after {b}; "
                    "ROUGE falls with answers much shorter or longer than the references, whatever they say."
                )
    return found
