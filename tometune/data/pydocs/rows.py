"""Training rows: the items of every module that is not held out, asked in several ways; and the best of them."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from tometune.data.pydocs.entries import Entry, entries
from tometune.data.pydocs.items import Item, items, stable_hash
from tometune.data.pydocs.language import language_entries
from tometune.data.pydocs.modules import is_held_out
from tometune.data.pydocs.text import is_sentence, plain_share, shingles, words

Row = dict[str, Any]

BASE_ROWS = 1_000
"""Rows of the filtered part."""

ANSWER_WORDS = range(5, 26)
"""Words of a good answer."""

PHRASINGS = {
    "summarisation": (
        "Summarise this documentation in one sentence.\n\n{input}",
        "{input}\n\nSum that up in one sentence.",
        "What is the first sentence of this documentation?\n\n{input}",
    ),
    "question_answering": (
        "Answer the question with a sentence of the text.\n\nText: {context}\n\nQuestion: {input}",
        "{context}\n\n{input}",
        "Read this.\n\n{context}\n\nNow answer: {input}",
    ),
    "data_to_text": (
        "Write one sentence of documentation from these facts.\n\n{input}",
        "{input}\n\nDocument this in one sentence.",
        "Describe in one sentence what this is for.\n\n{input}",
    ),
    "instruction_following": ("{input}",),
}
"""How each topic is asked; the first is the prompt of the evaluation task."""


@functools.cache
def pool() -> tuple[tuple[Row, float, int], ...]:
    """Return every row, its quality and a number that is as good as random; none twice."""
    found: dict[str, tuple[Row, float, int]] = {}
    for entry in trained_entries():
        for _, group in groupby(items(entry), key=lambda item: item.topic):
            for turns in _turns(list(group)):
                row = _row(turns)
                text = " ".join(" ".join(message["content"] for message in row["messages"]).split()).casefold()
                found.setdefault(text, (row, quality(turns), stable_hash(text)))
    return tuple(found.values())


@functools.cache
def base() -> tuple[Row, ...]:
    """Return the best `BASE_ROWS` rows, as many of each topic, best first; no answer is there twice.

    Equally good ones are taken in the order of their random numbers.

    Raises:
        RuntimeError: there are fewer; this Python's documentation is not what the generator was made for.
    """
    by_topic: defaultdict[str, list[Row]] = defaultdict(list)
    answers = set()
    for row, score, _ in sorted(pool(), key=lambda entry: (-entry[1], entry[2])):
        answer = row["messages"][-1]["content"]
        chosen = by_topic[row["source"]]
        if score > 0 and answer not in answers and len(chosen) < BASE_ROWS // len(PHRASINGS):
            answers.add(answer)
            chosen.append(row)
    rows = tuple(row for rank in zip(*by_topic.values(), strict=True) for row in rank)
    if len(rows) != BASE_ROWS:
        raise RuntimeError(f"{len(rows)} good rows in this Python's documentation, {BASE_ROWS} wanted")
    return rows


def quality(turns: list[Item]) -> float:
    """Return the share of ordinary words in a row's answers, or 0 unless it is public and answered by whole sentences.

    Ordinary is a word of letters alone: the measure falls with code, markup, names and numbers. A signature is all of
    them, and right by construction: it counts as 1.
    """
    shares = []
    for item in turns:
        is_signature = item.answer.startswith("def ")
        whole = is_sentence(item.answer) and words(item.answer) in ANSWER_WORDS
        if not item.entry.is_public or not (whole or is_signature):
            return 0.0
        shares.append(1.0 if is_signature else plain_share(item.answer))
    return min(shares)


def trained_entries() -> Iterator[Entry]:
    """Yield the entries to train on: of no held-out module, and sharing neither 13 words nor a summary with one."""
    held_out = [entry for entry in entries() if is_held_out(entry.module)]
    summaries = {entry.summary.casefold() for entry in held_out if entry.summary}
    runs = set().union(*(_runs(entry) for entry in held_out))
    for entry in (*entries(), *language_entries()):
        if (
            not is_held_out(entry.module)
            and entry.summary.casefold() not in summaries
            and runs.isdisjoint(_runs(entry))
        ):
            yield entry


def _runs(entry: Entry) -> set[str]:
    """Return the runs of 13 words of all that rows show of an entry."""
    return shingles(entry.doc) | shingles(entry.code)


def _turns(group: list[Item]) -> Iterator[list[Item]]:
    """Yield the items of one row: two short questions about one text are one conversation."""
    while group:
        item = group.pop(0)
        follow = next((other for other in group if other.context and other.context == item.context), None)
        if follow is not None:
            group.remove(follow)
        yield [item, follow] if follow else [item]


def _row(turns: list[Item]) -> Row:
    """Write a row as a conversation."""
    first = turns[0]
    phrasings = PHRASINGS[first.topic]
    prompt = phrasings[stable_hash(first.entry.full_name) % len(phrasings)]
    messages = []
    for number, item in enumerate(turns):
        content = item.input if number else prompt.format(input=item.input, context=item.context)
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": item.answer}]
    return {"messages": messages, "source": f"pydocs/{first.topic}"}
