"""The embedded data set: conversations and tasks made from the documentation in Python's standard library.

It is read from one file of the package, so its rows are the same on every machine and need no download.
scripts/make_pydocs.py wrote the file from CPython 3.11.7; its licence is in pydocs.NOTICE.txt next to it. Some modules
are held out: the tasks are made from these, the conversations from all others.
"""

import gzip
import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError, did_you_mean

FILE = Path(__file__).with_name("pydocs.jsonl.gz")

# The tasks, and the kinds of conversations.
TOPICS = ("summarisation", "question_answering", "data_to_text", "instruction_following")

Row = dict[str, Any]


def conversations(filtered: bool) -> list[Row]:
    """Return rows of `messages` ([{role, content}]) and `source`: the best 1,000, as many of each topic, or all."""
    rows = [line for line in _lines() if "messages" in line]
    if filtered:
        rows = sorted((row for row in rows if "rank" in row), key=lambda row: row["rank"])
    return [{"messages": row["messages"], "source": row["source"]} for row in rows]


def examples(topic: str) -> list[Row]:
    """Return the evaluation examples of a topic: `id`, `split`, `input`, `references`, and `context` for questions.

    Raises:
        UserError: the topic is unknown.
    """
    if topic not in TOPICS:
        raise UserError(
            f"topic={topic}: no such documentation task{did_you_mean(topic, TOPICS)}; one of {', '.join(TOPICS)}"
        )
    return [line for line in _lines() if line.get("topic") == topic]


@cache
def fingerprint() -> str:
    """Return what identifies the rows and the examples: a hash of the file."""
    return sha256(FILE.read_bytes()).hexdigest()[:20]


@cache
def _lines() -> list[Row]:
    # The first line tells what the file was made from.
    return [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()[1:]]
