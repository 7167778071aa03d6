"""Questions that a sentence of a text answers, found by how the sentence begins."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tometune.data.pydocs.text import is_sentence, words

CONDITION = re.compile(r"^(If|When|Unless) ([^,;:()]+), (?:then )?(.+)$")
POINTING = re.compile(r"^(it|this|that|they|so)\b|\b(this|that|so|it|them|these|those)$")
DEFAULT = re.compile(r"^By default,? (.+)$")
RAISES = re.compile(r"\b[Rr]aise[sd]?\b")
EXCEPTION = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Exit|Interrupt)\b")
RETURNS = re.compile(r"^(?:It |This |Also |The \w+ )?(?:[Rr]eturns? |return value is )(?!from\b)")
ARGUMENT = re.compile(r"^(?:The optional |Optional |The )?[\"'`*]*(\w+)[\"'`*]* ")
DEFINITION = re.compile(r"^(An?|The) ([\w\"' -]{3,40}?) (is|are) (?:an?|the|used|called)\b")
NO_NAME = re.compile(r"^(return|result|following|only|first|second|last)\b|\b(that|which)\b")
"""Subjects that a question out of their place would not make clear."""

FEWEST, MOST = 5, 32
"""Words of an answer."""


@dataclass(frozen=True)
class Question:
    """A question and the sentence of the text that answers it."""

    text: str
    answer: str

    clause: str
    """The answer without the condition that the question repeats; the answer itself where there is none."""


def questions(name: str, parameters: Sequence[str], text: Sequence[str]) -> Iterator[Question]:
    """Yield one question for each sentence that answers one; none twice.

    Args:
        name: of what the text documents.
        parameters: names of its parameters.
        text: sentences.
    """
    asked = set()
    for sentence in text:
        if not (is_sentence(sentence) and FEWEST <= words(sentence) <= MOST):
            continue
        question = _condition(sentence) or _statement(name, parameters, sentence)
        if question and question.text not in asked:
            asked.add(question.text)
            yield question


def _condition(sentence: str) -> Question | None:
    """Ask what happens under a condition."""
    if match := CONDITION.match(sentence):
        word, condition, clause = match.groups()
        if words(condition) >= 3 and words(clause) >= 3 and not POINTING.search(condition):
            return Question(f"What happens {word.lower()} {condition}?", sentence, _capital(clause))
    elif match := DEFAULT.match(sentence):
        return Question("What happens by default?", sentence, _capital(match[1]))
    return None


def _statement(name: str, parameters: Sequence[str], sentence: str) -> Question | None:
    """Ask for an exception, the value returned, a parameter or a definition."""
    exceptions = EXCEPTION.findall(sentence)
    text = None
    if RAISES.search(sentence) and len(exceptions) == 1:
        text = f"When is {exceptions[0]} raised?"
    elif RETURNS.match(sentence):
        text = f"What does {name} return?"
    elif (match := ARGUMENT.match(sentence)) and match[1] in parameters and len(match[1]) > 1:
        text = f"What is said about {match[1]}?"
    elif (match := DEFINITION.match(sentence)) and not NO_NAME.search(match[2]):
        text = f"What {match[3]} {match[1].lower()} {match[2]}?"
    return Question(text, sentence, sentence) if text else None


def _capital(clause: str) -> str:
    """Return a clause as a sentence."""
    return clause[:1].upper() + clause[1:]
