"""The embedded default: conversations and tasks made of the documentation in this Python's standard library.

Real text with no download and no licence question, the same for one version of Python. Some modules are held out: the
tasks are made of those, the conversations of all others.
"""

from typing import Any

from tometune.data.pydocs.modules import fingerprint

__all__ = ["TOPICS", "conversations", "examples", "fingerprint"]

TOPICS = ("summarisation", "question_answering", "data_to_text", "instruction_following")
"""The tasks, and the kinds of conversations."""


def conversations(filtered: bool) -> list[dict[str, Any]]:
    """Return rows of `messages` ([{role, content}]) and `source`, in a fixed order.

    Args:
        filtered: the best 1,000, as many of each topic; else all, in which those are contained.

    Raises:
        UserError: this Python came without the sources of its library.
    """
    from tometune.data.pydocs import rows

    return list(rows.base()) if filtered else [row for row, _, _ in rows.pool()]


def examples(topic: str) -> list[dict[str, Any]]:
    """Return the evaluation examples of a topic: `id`, `input`, `references`, and `context` for questions.

    Raises:
        UserError: the topic is unknown, or this Python came without the sources of its library.
    """
    from tometune.data.pydocs import tasks

    return tasks.examples(topic)
