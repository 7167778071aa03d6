"""How long the answers are: ROUGE falls where they are much shorter than the references, whatever they say."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tometune.reporting.phrases import listed

MUCH = 2.0
"""Times as long as another cell's answers: then it is told."""


def answer_tokens(records: Sequence[Mapping[str, Any]], stage: str, tasks: Sequence[str]) -> dict[str, float | None]:
    """Return the mean generated tokens of an answer by task, over runs; None where a record does not tell.

    Args:
        records: run.json of each run.
        stage: `base` or `tuned`.
        tasks: their names.
    """
    scored = [record["eval"][stage]["tasks"] for record in records if stage in record["eval"]]
    return {task: _mean([each.get(task, {}) for each in scored]) for task in tasks}


def _mean(scored: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over runs of one task."""
    known = [task["tokens"] / task["examples"] for task in scored if task.get("tokens") is not None]
    return round(fmean(known), 2) if known and len(known) == len(scored) else None


def told(table: Mapping[str, Any]) -> list[str]:
    """Say of which tasks the answers of a model's cells differ much in length.

    Args:
        table: the content of table.json.
    """
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    found = []
    for model in dict.fromkeys(row["model"] for row in tuned):
        cells = [row for row in tuned if row["model"] == model]
        for task in table["tasks"]:
            tokens = {row["cell"]: row["answer_tokens"][task] for row in cells}
            known = [value for value in tokens.values() if value is not None]
            if known and max(known) > MUCH * max(min(known), 0.5):
                each = listed([f"{value:.1f} after {cell}" for cell, value in tokens.items() if value is not None])
                found.append(
                    f"Length: tokens of an answer of {task}: {each}. "
                    "ROUGE falls with answers much shorter or longer than the references, whatever they say."
                )
    return found
