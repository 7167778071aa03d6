"""Items: what an entry gives for the four topics; training rows and evaluation examples are both made of them.

| topic | given | wanted |
|---|---|---|
| `summarisation` | what a docstring says after its first sentence | that first sentence |
| `question_answering` | some sentences of a docstring and a question | the sentence that answers it |
| `data_to_text` | name, parameters and keywords | the first sentence |
| `instruction_following` | short code, a name, or a list of parameters | the docstring, what it does, the signature |
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from tometune.data.pydocs.entries import Entry
from tometune.data.pydocs.questions import questions
from tometune.data.pydocs.text import sentences, words

SUMMARY_WORDS = range(4, 31)
BODY_WORDS = range(12, 76)
CODE_CHARACTERS = range(30, 450)
MOST_CHARACTERS = 750
KEYWORDS = 4
COMMON = re.compile(
    "about|after|also|another|been|before|being|both|does|each|from|have|into|itself|like|made|make|many|more|most|must|"
    "none|only|onto|other|over|such|than|that|their|them|then|there|these|they|this|those|through|under|upon|used|uses|"
    "using|very|when|where|which|while|will|with|without|would|return|returns|given"
)
"""Words too common to be keywords."""


@dataclass(frozen=True)
class Item:
    """One task with its answer."""

    topic: str
    entry: Entry
    input: str
    answer: str

    context: str = ""
    """Text that the input is about, where they are apart."""

    others: tuple[str, ...] = ()
    """Further right answers, as the documentation words them."""


def items(entry: Entry) -> Iterator[Item]:
    """Yield the items of an entry, topic by topic, several a topic where it gives them."""
    yield from (item for item in _all(entry) if len(item.context) + len(item.input) <= MOST_CHARACTERS)


def _all(entry: Entry) -> Iterator[Item]:
    """Yield them with the overlong."""
    yield from _answers(entry)
    if words(entry.summary) in SUMMARY_WORDS:
        yield from _summary(entry)
        yield from _facts(entry)
        yield from _instruction(entry)
    yield from _signature(entry)


def _summary(entry: Entry) -> Iterator[Item]:
    """Ask for the first sentence, given what follows it."""
    body: list[str] = []
    for paragraph in entry.body:
        for sentence in sentences(paragraph):
            if words(" ".join([*body, sentence])) >= BODY_WORDS.stop:
                break
            body.append(sentence)
    text = " ".join(body)
    if words(text) in BODY_WORDS and entry.summary not in text:
        yield Item("summarisation", entry, f"{entry.call}: {text}", entry.summary, others=entry.twins)


def _answers(entry: Entry) -> Iterator[Item]:
    """Ask what a sentence answers, given the sentences around it."""
    text = [sentence for paragraph in (entry.summary, *entry.body) for sentence in sentences(paragraph) if sentence]
    names = [re.split(r"[=:]", parameter)[0].strip("*") for parameter in entry.parameters or ()]
    name = entry.name.rpartition(".")[2] or entry.full_name
    for question in questions(name, names, text[1:]):
        context = _around(text, text.index(question.answer))
        if len(context) > 1:
            others = () if question.clause == question.answer else (question.clause,)
            joined = f"{entry.full_name}: {' '.join(context)}"
            yield Item("question_answering", entry, question.text, question.answer, joined, others)


def _around(text: list[str], place: int) -> list[str]:
    """Return the sentence at `place` with those before and behind it, as many as fit."""
    first, last = place, place + 1
    while True:
        wider = [(a, b) for a, b in ((first - 1, last), (first, last + 1)) if a >= 0 and b <= len(text)]
        fitting = [(a, b) for a, b in wider if words(" ".join(text[a:b])) < BODY_WORDS.stop]
        if not fitting:
            return text[first:last]
        first, last = fitting[0]


def _facts(entry: Entry) -> Iterator[Item]:
    """Ask for the first sentence, given facts and keywords."""
    found = re.findall(r"[a-z]{4,}", re.sub(r"\w*[A-Z_.(]\w*", " ", entry.summary[:1].lower() + entry.summary[1:]))
    keywords = sorted(
        dict.fromkeys(word for word in found if not COMMON.fullmatch(word)), key=lambda word: (-len(word), word)
    )
    lines = [f"{entry.kind}: {entry.full_name}"]
    if entry.parameters:
        lines.append(f"parameters: {', '.join(entry.parameters)}")
    if len(keywords) > 1:
        lines.append(f"keywords: {', '.join(sorted(keywords[:KEYWORDS]))}")
        yield Item("data_to_text", entry, "\n".join(lines), entry.summary, others=entry.twins)


def _instruction(entry: Entry) -> Iterator[Item]:
    """Ask for a docstring where the code is short, else what the thing does."""
    if len(entry.code) in CODE_CHARACTERS:
        text = f"Write a one-sentence docstring.\n\n{entry.code}"
    elif entry.kind in ("module", "class", "property"):
        text = f"In one sentence, what is the Python {entry.kind} {entry.call} for?"
    else:
        text = f"In one sentence, what does {entry.call} do in Python?"
    yield Item("instruction_following", entry, text, entry.summary, others=entry.twins)


def _signature(entry: Entry) -> Iterator[Item]:
    """Ask some functions for their signature, given their parameters in words."""
    written = [parameter for parameter in entry.parameters or () if parameter != "*"]
    plain = all(re.fullmatch(r"\w+(=[^*]+)?", parameter) for parameter in written) and "*" not in str(entry.parameters)
    if (
        entry.kind not in ("function", "method")
        or not plain
        or len(written) not in (2, 3, 4)
        or stable_hash(entry.full_name) % 6
    ):
        return
    told = [" with default ".join(parameter.split("=", 1)) for parameter in written]
    name = entry.name.rpartition(".")[2]
    text = f"Write the first line of a Python function {name} that takes {', '.join(told[:-1])} and {told[-1]}."
    yield Item("instruction_following", entry, text, f"def {name}({', '.join(written)}):")


def stable_hash(text: str) -> int:
    """Return a number that depends on the text alone and is the same in every process."""
    return crc32(text.encode())
