"""Write tometune/data/pydocs.jsonl.gz: conversations and tasks made from Python's own documentation.

    python scripts/make_pydocs.py [--out other.jsonl.gz]

It reads the standard library of the Python that runs it. The shipped file was made with CPython 3.11.7 on Linux.

The first line names the Python. Each row has `messages`, `source` and, if it is one of the best 1,000, its `rank` among
them. Each example of a task has `topic`, `split`, `id`, `input`, `references` and, for questions, `context`.

Docstrings become items of four topics; training rows and evaluation examples are both made from items:

| topic | given | wanted |
|---|---|---|
| `summarisation` | a docstring without its first sentence | that first sentence |
| `question_answering` | some sentences of a docstring and a question | the sentence that answers it |
| `data_to_text` | name, parameters and keywords | the first sentence |
| `instruction_following` | short code, a name, or a list of parameters | the docstring, the purpose, the signature |

The examples come from the modules in `HELD_OUT`, the rows from all others. If the output of this script changes,
every run on this data gets a new id.
"""

import argparse
import gzip
import json
import platform
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any
from zlib import crc32

from pydocs_entries import (
    LANGUAGE,
    Entry,
    entries,
    is_held_out,
    is_sentence,
    language_entries,
    sentences,
    shingles,
    source_files,
    words,
)

from tometune.common.seeding import stream

Row = dict[str, Any]

SHIPPED = Path(__file__).parents[1] / "tometune" / "data" / "pydocs.jsonl.gz"


def stable_hash(text: str) -> int:
    """Return a number that is the same in every process, unlike `hash`."""
    return crc32(text.encode())


# ---- Questions: which sentence answers one, by how it begins. ----

CONDITION = re.compile(r"^(If|When|Unless) ([^,;:()]+), (?:then )?(.+)$")
POINTING = re.compile(r"^(it|this|that|they|so)\b|\b(this|that|so|it|them|these|those)$")
DEFAULT = re.compile(r"^By default,? (.+)$")
RAISES = re.compile(r"\b[Rr]aise[sd]?\b")
EXCEPTION = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Exit|Interrupt)\b")
RETURNS = re.compile(r"^(?:It |This |Also |The \w+ )?(?:[Rr]eturns? |return value is )(?!from\b)")
ARGUMENT = re.compile(r"^(?:The optional |Optional |The )?[\"'`*]*(\w+)[\"'`*]* ")
DEFINITION = re.compile(r"^(An?|The) ([\w\"' -]{3,40}?) (is|are) (?:an?|the|used|called)\b")
NO_NAME = re.compile(r"^(return|result|following|only|first|second|last)\b|\b(that|which)\b")
"""Subjects that are unclear out of context."""


@dataclass(frozen=True)
class Question:
    """A question and the sentence of the text that answers it."""

    text: str
    answer: str

    clause: str
    """The answer without the condition that the question repeats; else the answer itself."""


def questions(name: str, params: list[str], text: list[str]) -> Iterator[Question]:
    """Yield one question for each sentence that answers one; none twice.

    Args:
        name: of the documented object.
        params: names of its parameters.
        text: sentences.
    """
    asked = set()
    for sentence in text:
        if not (is_sentence(sentence) and 5 <= words(sentence) <= 32):
            continue
        question = condition_question(sentence) or statement_question(name, params, sentence)
        if question and question.text not in asked:
            asked.add(question.text)
            yield question


def condition_question(sentence: str) -> Question | None:
    """Ask what happens under a condition."""
    if match := CONDITION.match(sentence):
        word, condition, clause = match.groups()
        if words(condition) >= 3 and words(clause) >= 3 and not POINTING.search(condition):
            return Question(f"What happens {word.lower()} {condition}?", sentence, clause[:1].upper() + clause[1:])
    elif match := DEFAULT.match(sentence):
        return Question("What happens by default?", sentence, match[1][:1].upper() + match[1][1:])
    return None


def statement_question(name: str, params: list[str], sentence: str) -> Question | None:
    """Ask for an exception, the value returned, a parameter or a definition."""
    exceptions = EXCEPTION.findall(sentence)
    if RAISES.search(sentence) and len(exceptions) == 1:
        text = f"When is {exceptions[0]} raised?"
    elif RETURNS.match(sentence):
        text = f"What does {name} return?"
    elif (match := ARGUMENT.match(sentence)) and match[1] in params and len(match[1]) > 1:
        text = f"What is said about {match[1]}?"
    elif (match := DEFINITION.match(sentence)) and not NO_NAME.search(match[2]):
        text = f"What {match[3]} {match[1].lower()} {match[2]}?"
    else:
        return None
    return Question(text, sentence, sentence)


# ---- Items: what an entry gives for the four topics. ----

SUMMARY_WORDS, BODY_WORDS, ANSWER_WORDS = range(4, 31), range(12, 76), range(5, 26)
CODE_CHARACTERS = range(30, 450)
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
    others: tuple[str, ...] = ()
    """Further right answers, as the documentation words them."""


def items(entry: Entry) -> Iterator[Item]:
    """Yield the items of an entry that are not too long, topic by topic; a topic may have several."""
    found = list(answer_items(entry))
    if words(entry.summary) in SUMMARY_WORDS:
        found += [*summary_items(entry), *fact_items(entry), instruction_item(entry)]
    yield from (item for item in (*found, *signature_items(entry)) if len(item.context) + len(item.input) <= 750)


def answer_items(entry: Entry) -> Iterator[Item]:
    """Ask what a sentence answers, given the sentences around it."""
    text = [sentence for paragraph in (entry.summary, *entry.body) for sentence in sentences(paragraph) if sentence]
    names = [re.split(r"[=:]", parameter)[0].strip("*") for parameter in entry.parameters or ()]
    for question in questions(entry.name.rpartition(".")[2] or entry.full_name, names, text[1:]):
        context = surroundings(text, text.index(question.answer))
        if len(context) > 1:
            others = () if question.clause == question.answer else (question.clause,)
            joined = f"{entry.full_name}: {' '.join(context)}"
            yield Item("question_answering", entry, question.text, question.answer, joined, others)


def surroundings(text: list[str], index: int) -> list[str]:
    """Return a sentence with those before and after it, as many as fit."""
    first, last = index, index + 1
    while True:
        wider = [(a, b) for a, b in ((first - 1, last), (first, last + 1)) if a >= 0 and b <= len(text)]
        fitting = [(a, b) for a, b in wider if words(" ".join(text[a:b])) < BODY_WORDS.stop]
        if not fitting:
            return text[first:last]
        first, last = fitting[0]


def summary_items(entry: Entry) -> Iterator[Item]:
    """Ask for the first sentence, given the sentences after it."""
    body: list[str] = []
    for paragraph in entry.body:
        for sentence in sentences(paragraph):
            if words(" ".join([*body, sentence])) >= BODY_WORDS.stop:
                break
            body.append(sentence)
    text = " ".join(body)
    if words(text) in BODY_WORDS and entry.summary not in text:
        yield Item("summarisation", entry, f"{entry.call}: {text}", entry.summary, others=entry.twins)


def fact_items(entry: Entry) -> Iterator[Item]:
    """Ask for the first sentence, given facts and keywords."""
    lowered = entry.summary[:1].lower() + entry.summary[1:]
    found = set(re.findall(r"[a-z]{4,}", re.sub(r"\w*[A-Z_.(]\w*", " ", lowered)))
    keywords = sorted((word for word in found if not COMMON.fullmatch(word)), key=lambda word: (-len(word), word))
    lines = [f"{entry.kind}: {entry.full_name}"]
    if entry.parameters:
        lines.append(f"parameters: {', '.join(entry.parameters)}")
    if len(keywords) > 1:
        lines.append(f"keywords: {', '.join(sorted(keywords[:4]))}")
        yield Item("data_to_text", entry, "\n".join(lines), entry.summary, others=entry.twins)


def instruction_item(entry: Entry) -> Item:
    """Ask for a docstring if the code is short, else for the purpose."""
    if len(entry.code) in CODE_CHARACTERS:
        text = f"Write a one-sentence docstring.\n\n{entry.code}"
    elif entry.kind in ("module", "class", "property"):
        text = f"In one sentence, what is the Python {entry.kind} {entry.call} for?"
    else:
        text = f"In one sentence, what does {entry.call} do in Python?"
    return Item("instruction_following", entry, text, entry.summary, others=entry.twins)


def signature_items(entry: Entry) -> Iterator[Item]:
    """Yield a question for the signature of one function in six, given its parameters in words."""
    written = [parameter for parameter in entry.parameters or () if parameter != "*"]
    plain = all(re.fullmatch(r"\w+(=[^*]+)?", parameter) for parameter in written) and "*" not in str(entry.parameters)
    is_function = entry.kind in ("function", "method") and plain and len(written) in (2, 3, 4)
    if is_function and stable_hash(entry.full_name) % 6 == 0:
        described = [" with default ".join(parameter.split("=", 1)) for parameter in written]
        name = entry.name.rpartition(".")[2]
        taken = f"{', '.join(described[:-1])} and {described[-1]}"
        text = f"Write the first line of a Python function {name} that takes {taken}."
        yield Item("instruction_following", entry, text, f"def {name}({', '.join(written)}):")


def quality(turns: list[Item]) -> float:
    """Return the share of ordinary words in the answers, or 0 unless they are public and whole sentences.

    An ordinary word has only letters, so code, markup, names and numbers lower the share. A signature has nothing else
    and is right by construction: it counts as 1.
    """
    shares = []
    for item in turns:
        is_signature = item.answer.startswith("def ")
        whole = is_sentence(item.answer) and words(item.answer) in ANSWER_WORDS
        if not item.entry.is_public or not (whole or is_signature):
            return 0.0
        parts = item.answer.split()
        ordinary = sum(re.fullmatch(r"[A-Za-z][a-z'-]*[,.;:!?]?", part) is not None for part in parts)
        shares.append(1.0 if is_signature else ordinary / len(parts))
    return min(shares)


# ---- Training rows. ----

BASE_ROWS = 1_000

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
"""Prompts by topic; the first is that of the evaluation task."""


def trained_entries() -> list[Entry]:
    """Return the entries outside the held-out modules that share neither 13 words nor a summary with one inside."""
    held_out = [entry for entry in entries() if is_held_out(entry.module)]
    summaries = {entry.summary.casefold() for entry in held_out if entry.summary}
    sequences = set().union(*(shingles(entry.doc) | shingles(entry.code) for entry in held_out))
    return [
        entry
        for entry in (*entries(), *language_entries())
        if not is_held_out(entry.module)
        and entry.summary.casefold() not in summaries
        and sequences.isdisjoint(shingles(entry.doc) | shingles(entry.code))
    ]


def training_rows() -> list[Row]:
    """Return every row; the best ones have a `rank`, and their topics alternate."""
    found: dict[str, tuple[Row, float, int]] = {}
    for entry in trained_entries():
        for _, group in groupby(items(entry), key=lambda item: item.topic):
            waiting = list(group)
            while waiting:
                turns = [waiting.pop(0)]
                # Two questions about one text are one conversation.
                follow = next((item for item in waiting if item.context and item.context == turns[0].context), None)
                if follow is not None:
                    waiting.remove(follow)
                    turns.append(follow)
                row = conversation(turns)
                text = " ".join(" ".join(message["content"] for message in row["messages"]).split()).casefold()
                found.setdefault(text, (row, quality(turns), stable_hash(text)))
    best: defaultdict[str, list[Row]] = defaultdict(list)
    answers = set()
    for row, score, _ in sorted(found.values(), key=lambda entry: (-entry[1], entry[2])):
        chosen, answer = best[row["source"]], row["messages"][-1]["content"]
        if score > 0 and answer not in answers and len(chosen) < BASE_ROWS // len(PHRASINGS):
            answers.add(answer)
            chosen.append(row)
    for rank, row in enumerate(row for rows in zip(*best.values(), strict=True) for row in rows):
        row["rank"] = rank
    return [row for row, _, _ in found.values()]


def conversation(turns: list[Item]) -> Row:
    """Return a row of {messages, source}."""
    first = turns[0]
    phrasings = PHRASINGS[first.topic]
    prompt = phrasings[stable_hash(first.entry.full_name) % len(phrasings)]
    prompts = [prompt.format(input=first.input, context=first.context), *(item.input for item in turns[1:])]
    messages = []
    for content, item in zip(prompts, turns, strict=True):
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": item.answer}]
    return {"messages": messages, "source": f"pydocs/{first.topic}"}


# ---- Evaluation examples. ----


def examples(topic: str) -> list[Row]:
    """Return the examples of a topic: good items of the held-out modules, each input once.

    Each documented object is in one split. The quarter of the objects that comes last in the evaluation's own order of
    examples is for validation, so that `limit` takes the same test examples as it would without a validation split.
    """
    found: dict[tuple[str, str], Item] = {}
    for entry in entries():
        for item in items(entry) if is_held_out(entry.module) else ():
            if item.topic == topic and quality([item]) > 0:
                found.setdefault((item.context, item.input), item)
    chosen = list(found.values())
    order = stream(0, "evaluation examples").permutation(len(chosen)).tolist()
    names = list(dict.fromkeys(chosen[index].entry.full_name for index in order))
    validation = set(names[len(names) - len(names) // 4 :])
    seen: Counter[str] = Counter()
    rows = []
    for item in chosen:
        name = item.entry.full_name
        seen[name] += 1
        row = {"topic": topic, "split": "validation" if name in validation else "test"}
        row |= {"id": name if seen[name] == 1 else f"{name}-{seen[name]}", "input": item.input}
        row |= {"context": item.context} if item.context else {}
        rows.append({**row, "references": list(dict.fromkeys([item.answer, *item.others]))})
    return rows


# ---- The file. ----


def made_from() -> Row:
    """Return the first line of the file: which documentation it was made from."""
    digest = sha256()
    for name, path in (*source_files(), ("pydoc_data/topics.py", LANGUAGE)):
        digest.update(f"{name}\0".encode() + sha256(path.read_bytes()).digest())
    python = f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}"
    return {"python": python, "sources": digest.hexdigest()[:12], "licence": "PSF-2.0, see pydocs.NOTICE.txt"}


def content() -> bytes:
    """Return the lines of the file."""
    lines = [made_from(), *training_rows(), *(row for topic in PHRASINGS for row in examples(topic))]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=SHIPPED, help="default: the file in the package")
    out = parser.parse_args().out
    out.write_bytes(gzip.compress(content(), mtime=0))  # no time, so that the same lines give the same bytes
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {sha256(out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
