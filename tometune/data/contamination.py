"""Contamination: rows of a mix that share a sequence of words with an evaluation example.

A row overlaps an evaluation text if it holds 13 of its words in sequence. Two kinds of sequences do not count:
boilerplate of the task, which is in several examples, and stock phrases, which are in many rows. A copy may be in many
rows as well, so a whole evaluation text always counts, and so do 50 words in sequence that are no boilerplate.
docs/contamination.md describes the method and its limits.
"""

import json
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from itertools import chain, groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.data.conversations import texts_of
from tometune.data.features import slices
from tometune.data.parallel import in_order
from tometune.data.standardise import Standardised

log = logging.getLogger(__name__)

VERSION = 4  # raised when the same source and the same texts give other overlaps
LENGTH = 13  # words in a sequence, as in GPT-3's appendix C and lm-evaluation-harness

# A shorter evaluation text is looked for as a whole, down to this many words, the least in GPT-3's appendix C.
SHORTEST = 8

BOILERPLATE_ABOVE = 3  # evaluation texts, and examples, with the same sequence
STOCK_PHRASE_ABOVE = 10  # different rows with the same sequence, as in GPT-3's appendix C
COPY_FROM = 50  # words in sequence, too many for a stock phrase
SHOWN_WORDS, SHOWN_EXAMPLES = 60, 5  # words kept of an overlap, and overlaps that a report shows per task
ROWS = 500  # rows that a worker process searches at once

# Unicode categories that are deleted: punctuation, symbols, marks (accents), format characters, surrogates.
DELETED = ("P", "S", "M", "Cf", "Cs")

# A row (`row`, `source`, `key` in hex) and an example (`task`, `example`) that share words: the length of the longest
# stretch (`words`) and its first words (`shared`).
Overlap = dict[str, Any]

Hit = tuple[int, list[str], list[tuple[int, str]]]  # a row, its words, and the sequences in it by place


class _Folding(dict[int, str]):
    """What `str.translate` replaces each character with, worked out when the character first occurs."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        decomposed = unicodedata.normalize("NFKD", character).casefold()
        kept = "".join(part for part in decomposed if not unicodedata.category(part).startswith(DELETED))
        if character.isspace() or kept.isspace() or character < " " or character == "\x7f":
            kept = " "
        self[number] = character if len(kept) > 1 else kept  # a ligature stays one
        return self[number]


_FOLDING = _Folding()


def fold(text: str) -> list[str]:
    """Return the normalised words of a text, as GPT-3's appendix C (https://arxiv.org/abs/2005.14165) defines them.

    >>> fold("The  Café’s “opening”, at 9:30!")
    ['the', 'cafes', 'opening', 'at', '930']
    """
    return text.translate(_FOLDING).split()


class EvaluationTexts:
    """The texts of the evaluation that training data must not hold."""

    def __init__(self, texts: Sequence[tuple[str, str, str]]) -> None:
        """Take task, example and text of every input, context and reference."""
        self.digest = sha256(json.dumps(list(texts)).encode()).hexdigest()[:20]
        self.examples = dict(Counter(task for task, _ in dict.fromkeys(text[:2] for text in texts)))  # by task
        owners = defaultdict[str, dict[tuple[str, str], None]](dict)
        too_short: Counter[str] = Counter()
        for task, example, text in texts:
            words = fold(text)
            if len(words) < SHORTEST:
                too_short[task] += 1
            else:
                owners[" ".join(words)][task, example] = None
        self.too_short = dict(too_short)  # texts by task that have fewer than `SHORTEST` words and are not looked for
        # The (task, example) of each distinct normalised text: several examples may share a paragraph. A text of all
        # examples of a task, such as an instruction in a field, is not looked for.
        self.owners = {}
        for text, examples in owners.items():
            per_task = Counter(task for task, _ in examples)
            common = {task for task, count in per_task.items() if BOILERPLATE_ABOVE < count == self.examples[task]}
            if kept := [owner for owner in examples if owner[0] not in common]:
                self.owners[text] = kept


def overlaps(source: Standardised, texts: EvaluationTexts, cache: Path) -> list[Overlap]:
    """Return the overlaps of all rows of a source, from the cache or searched now.

    They depend on the source and the texts alone, so mixes of any size over one source share them.
    """
    made_from = {"source": source.fingerprint, "texts": texts.digest, "unicode": unicodedata.unidata_version}
    key = {**made_from, "overlaps": VERSION}
    folder = cached_folder(cache, "overlaps", key, lambda target: _build(source, texts, target))
    return json.loads((folder / "overlaps.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _build(source: Standardised, texts: EvaluationTexts, folder: Path) -> None:
    start, owners = perf_counter(), list(texts.owners.values())
    longest: dict[tuple[int, str, str], tuple[int, str]] = {}
    for row, text, shared in _overlapping(search(source, texts, folder), texts, source.keys):
        for owner in owners[text]:
            found = (len(shared), " ".join(shared[:SHOWN_WORDS]))
            longest[row, *owner] = max(longest.get((row, *owner), (0, "")), found)
    listed = []
    for (row, task, example), (words, beginning) in longest.items():
        of_row = {"row": row, "key": source.keys[[row]].tobytes().hex(), "source": source.names[source.labels[row]]}
        listed.append(of_row | {"task": task, "example": example, "words": words, "shared": beginning})
    (folder / "overlaps.json").write_text(json.dumps(listed), encoding="utf-8")
    log.info("%s rows searched for evaluation texts in %.1f s", f"{len(source.rows):,}", perf_counter() - start)


def search(source: Standardised, texts: EvaluationTexts, folder: Path) -> list[Hit]:
    """Return the rows that hold a sequence of an evaluation text; the folder is for a temporary file."""
    listed = folder / "texts.txt"
    listed.write_text("\n".join(texts.owners), encoding="utf-8")
    known = {sequence for text in texts.owners for sequence in _sequences(text.split())}
    lengths = {len(sequence.split()) for sequence in known}
    hits = []
    work = partial(_similar_rows, rows=source.folder / "rows.arrow", texts=listed)
    for row, words in chain.from_iterable(in_order(work, range(0, len(source.rows), ROWS))):
        in_row = {pair for length in lengths for pair in enumerate(_sequences(words, length)) if pair[1] in known}
        if in_row:
            hits.append((row, words, sorted(in_row)))
    listed.unlink()
    return hits


def _sequences(words: list[str], length: int = LENGTH) -> list[str]:
    """Return every sequence of `length` words; a shorter text is one sequence."""
    length = min(length, len(words))
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]


def _similar_rows(first: int, rows: Path, texts: Path) -> list[tuple[int, list[str]]]:
    """Return the numbers and words of those of `ROWS` rows that share `SHORTEST` words in sequence with a text.

    Few rows do, so only they are searched for longer sequences. All texts of a row are one, its tools included.
    """
    known = _hashes_in(texts)
    batches = (batch.select(["messages", "extras"]) for batch in slices(rows, first, first + ROWS))
    conversations = (texts_of(**row) for batch in batches for row in batch.to_pylist())
    folded = (fold(" ".join(chain(*texts))) for texts in conversations)
    return [(row, words) for row, words in enumerate(folded, first) if not known.isdisjoint(_hashes(words))]


@lru_cache(maxsize=1)
def _hashes_in(file: Path) -> set[int]:
    """Return the hashes of all sequences of `SHORTEST` words in a file of texts; made once per process."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return {value for line in lines for value in _hashes(line.split())}


def _hashes(words: list[str]) -> Iterator[int]:
    """Yield a hash of every sequence of `SHORTEST` words; each process has its own hashes."""
    return map(hash, zip(*(words[start:] for start in range(SHORTEST)), strict=False))


def _overlapping(hits: list[Hit], texts: EvaluationTexts, keys: np.ndarray) -> Iterator[tuple[int, int, list[str]]]:
    """Yield each row and text that overlap, and the words of the longest stretch that they share.

    `keys` are those of all rows: rows of one key have one text and count as one.
    """
    normalised, owners = list(texts.owners), list(texts.owners.values())
    sequences = [set(_sequences(text.split())) for text in normalised]
    texts_with, texts_beginning_with = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for text, words in enumerate(map(str.split, normalised)):
        for sequence in sequences[text]:
            texts_with[sequence].append(text)
        if len(words) >= LENGTH:
            texts_beginning_with[_sequences(words)[0]].append(text)
    boilerplate = {
        sequence
        for sequence, found in texts_with.items()
        if min(len(found), len({owner for text in found for owner in owners[text]})) > BOILERPLATE_ABOVE
    }
    in_rows = {(sequence, bytes(keys[row])) for row, _, held in hits for _, sequence in held}
    rows_with = Counter(sequence for sequence, _ in in_rows)
    phrases = {sequence for sequence, rows in rows_with.items() if rows > STOCK_PHRASE_ABOVE}
    for row, words, in_row in hits:
        held = {sequence for _, sequence in in_row}
        at_place = {place: sequence for place, sequence in in_row if sequence.count(" ") == LENGTH - 1}
        # n sequences, each beginning a word after the one before, span n + LENGTH - 1 words.
        copied = [part for part in _stretches(at_place) if len(part) + LENGTH - 1 >= COPY_FROM]
        counted = (held - phrases | {at_place[place] for part in copied for place in part}) - boilerplate
        matching = {text for sequence in counted for text in texts_with[sequence]}
        beginning = (text for sequence in held for text in texts_beginning_with.get(sequence, ()))
        matching |= {text for text in beginning if sequences[text] <= held}  # the whole text
        for text in sorted(matching):
            longest = max(_stretches(place for place, held in in_row if held in sequences[text]), key=len)
            length = min(normalised[text].count(" ") + 1, LENGTH)
            yield row, text, words[longest[0] : longest[-1] + length]


def _stretches(places: Iterable[int]) -> list[list[int]]:
    """Split ascending places where one does not follow the one before."""
    groups = groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    return [[place for _, place in group] for _, group in groups]


def overlapping_rows(
    source: Standardised, texts: EvaluationTexts, cache: Path
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Return which rows of a source overlap (bool), and their number by task and source; a row may be in two tasks."""
    found = overlaps(source, texts, cache)
    mask = np.zeros(len(source.rows), dtype=bool)
    mask[[overlap["row"] for overlap in found]] = True
    return mask, _rows_by_task(dict.fromkeys((entry["row"], entry["task"], entry["source"]) for entry in found))


def _rows_by_task(rows: Iterable[tuple[Any, str, str]]) -> dict[str, dict[str, int]]:
    """Count rows, given with task and source, by task and source, largest first."""
    counts = defaultdict[str, Counter[str]](Counter)
    for _, task, name in rows:
        counts[task][name] += 1
    return {task: dict(by_source.most_common()) for task, by_source in sorted(counts.items())}


@dataclass(frozen=True)
class MixOverlaps:
    """The rows of a mix that overlap."""

    rows: int  # of the mix
    overlapping: int  # rows that overlap any example
    counts: dict[str, dict[str, int]]  # rows by task and source
    touched: dict[str, int]  # examples by task that some row overlaps
    examples: dict[str, int]  # by task
    too_short: dict[str, int]  # texts by task that are too short to be looked for
    shown: list[Overlap]  # a few of them by task, longest first, with their `origin`


def of_mix(parts: Mapping[str, tuple[Standardised, np.ndarray]], texts: EvaluationTexts, cache: Path) -> MixOverlaps:
    """Return the overlaps of a mix; `parts` are sources and the numbers of their rows, by origin: `base` and `pool`."""
    found: list[Overlap] = []
    for origin, (source, numbers) in parts.items():
        chosen = set(numbers.tolist())
        of_source = overlaps(source, texts, cache)
        found += [overlap | {"origin": origin} for overlap in of_source if overlap["row"] in chosen]
    found.sort(key=lambda overlap: (overlap["task"], -overlap["words"], overlap["origin"], overlap["key"]))
    rows = {((overlap["origin"], overlap["row"]), overlap["task"], overlap["source"]) for overlap in found}
    examples = dict.fromkeys((overlap["task"], overlap["example"]) for overlap in found)
    shown: dict[str, dict[str, Overlap]] = defaultdict(dict)  # of rows with the same text, one
    for overlap in found:
        shown[overlap["task"]].setdefault(f"{overlap['origin']}:{overlap['key']}", overlap)
    return MixOverlaps(
        rows=sum(len(numbers) for _, numbers in parts.values()),
        overlapping=len({row for row, _, _ in rows}),
        counts=_rows_by_task(rows),
        touched=dict(Counter(task for task, _ in examples)),
        examples=texts.examples,
        too_short=texts.too_short,
        shown=[overlap for entries in shown.values() for overlap in [*entries.values()][:SHOWN_EXAMPLES]],
    )
