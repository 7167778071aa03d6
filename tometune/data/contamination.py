"""Contamination: rows of a mix that share a sequence of words with an evaluation example.

A row overlaps an evaluation text if it holds 13 of its words in sequence (`ngrams`). Two kinds of sequences do not
count: boilerplate of the task, which is in several examples, and stock phrases, which are in many rows. A copy may be
in many rows as well, so a whole evaluation text always counts, and so do 50 words in sequence that are no boilerplate.
docs/contamination.md describes the method and its limits.
"""

import json
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.data.ngrams import LENGTH, ROWS, SHORTEST, Hit, Index, fold, index_of, search
from tometune.data.parallel import in_order
from tometune.data.standardise import Standardised

log = logging.getLogger(__name__)

VERSION = 2  # raised when the same source and the same texts give other overlaps
SHARED = 3  # a sequence in more evaluation texts than that, of more examples, is boilerplate
COMMON = 10  # a sequence in more different rows than that is a stock phrase, as in GPT-3's appendix C
STRETCH = 50  # words that are too many for a stock phrase
SHOWN_WORDS, SHOWN_EXAMPLES = 60, 5  # words kept of an overlap, and overlaps that a report shows per task

# A row (`row`, `source`, `key` in hex) and an example (`task`, `example`) that share words: the length of the longest
# stretch (`words`) and its first words (`shared`).
Overlap = dict[str, Any]


class EvaluationTexts:
    """The texts of the evaluation that training data must not hold."""

    def __init__(self, texts: Sequence[tuple[str, str, str]]) -> None:
        """Take task, example and text of every input, context and reference."""
        self.texts = texts
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
        # The (task, example) of each distinct normalised text: several examples may share a paragraph.
        self.owners = {text: list(examples) for text, examples in owners.items()}


def overlaps(source: Standardised, texts: EvaluationTexts, cache: Path) -> list[Overlap]:
    """Return the overlaps of all rows of a source, from the cache or searched now.

    They depend on the source and the texts alone, so mixes of any size over one source share them.
    """
    made_from = {"source": source.fingerprint, "texts": texts.digest, "unicode": unicodedata.unidata_version}
    key = {**made_from, "overlaps": VERSION}
    folder = cached_folder(cache, "overlaps", key, lambda target: _build(source, texts, target))
    return json.loads((folder / "overlaps.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _build(source: Standardised, texts: EvaluationTexts, folder: Path) -> None:
    start, count = perf_counter(), len(source.rows)
    listed = folder / "texts.txt"
    listed.write_text("\n".join(texts.owners), encoding="utf-8")
    work = partial(search, rows=source.folder / "rows.arrow", texts=listed)
    hits = list(chain.from_iterable(in_order(work, range(0, count, ROWS))))
    owners = list(texts.owners.values())
    longest: dict[tuple[int, str, str], tuple[int, str]] = {}
    for row, text, words, shared in _judged(index_of(listed), owners, hits, source.keys):
        for owner in owners[text]:
            longest[row, *owner] = max(longest.get((row, *owner), (0, "")), (words, shared))
    listed.unlink()
    found = []
    for (row, task, example), (words, shared) in longest.items():
        key = "".join(f"{half:016x}" for half in source.keys[row].tolist())
        of_row = {"row": row, "key": key, "source": source.names[source.labels[row]]}
        found.append(of_row | {"task": task, "example": example, "words": words, "shared": shared})
    (folder / "overlaps.json").write_text(json.dumps(found), encoding="utf-8")
    log.info("%s rows searched for evaluation texts in %.1f s", f"{count:,}", perf_counter() - start)


def _judged(
    index: Index, owners: list[list[tuple[str, str]]], hits: list[Hit], keys: np.ndarray
) -> Iterator[tuple[int, int, int, str]]:
    """Yield each row and text that overlap, with the length and the words of the longest shared stretch.

    `hits` are those of `search` over all rows, `keys` of all rows: rows of one key have one text and count as one.
    """
    # In how many different rows each sequence is.
    rows_with = Counter(sequence for sequence, _ in {(sequence, keys[row].tobytes()) for row, _, sequence, _ in hits})
    sequences: dict[int, set[int]] = {}  # of each text that shares any
    texts_with = defaultdict[int, list[int]](list)
    whole = defaultdict[int, list[int]](list)  # texts that may be in a row as a whole, by their rarest sequence
    for text in range(len(owners)):
        own = index.sequences(text)
        if not own.isdisjoint(rows_with):
            sequences[text] = own
            for sequence in own & rows_with.keys():
                texts_with[sequence].append(text)
            if len(index.texts[text]) >= LENGTH and own <= rows_with.keys():
                whole[min(own, key=rows_with.__getitem__)].append(text)
    boilerplate = {
        sequence
        for sequence, texts in texts_with.items()
        if len(texts) > SHARED and len({owner for text in texts for owner in owners[text]}) > SHARED
    }
    phrases = {sequence for sequence, rows in rows_with.items() if rows > COMMON}
    # Row by row: the sequences that count, then the texts that hold one of them or are in the row as a whole.
    for row, group in groupby(hits, itemgetter(0)):
        of_row = list(group)
        held = {sequence for _, _, sequence, _ in of_row}
        at_place = {place: sequence for _, place, sequence, length in of_row if length == LENGTH}
        # n sequences, each beginning a word after the one before, span n + LENGTH - 1 words.
        long = [part for part in _stretches(at_place) if len(part) + LENGTH - 1 >= STRETCH]
        counted = (held - phrases | {at_place[place] for part in long for place in part}) - boilerplate
        matching = {text for sequence in counted for text in texts_with[sequence]}
        matching |= {text for sequence in held for text in whole.get(sequence, ()) if sequences[text] <= held}
        for text in sorted(matching):
            of_text = {place: sequence for _, place, sequence, _ in of_row if sequence in sequences[text]}
            first, *others = (of_text[place] for place in max(_stretches(of_text), key=len))
            length = min(len(index.texts[text]), LENGTH)
            words = index.words[first : first + length] + [index.words[other + length - 1] for other in others]
            yield row, text, len(words), " ".join(words[:SHOWN_WORDS])


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
    counts = defaultdict[str, Counter[str]](Counter)
    for _, task, name in dict.fromkeys((overlap["row"], overlap["task"], overlap["source"]) for overlap in found):
        counts[task][name] += 1
    return mask, {task: dict(by_source.most_common()) for task, by_source in sorted(counts.items())}


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


def of_mix(row_ids: Sequence[str], found: Mapping[str, list[Overlap]], texts: EvaluationTexts) -> MixOverlaps:
    """Return the overlaps of a mix; `found` are the `overlaps` by origin, `base` and `pool`."""
    copies = Counter(row_id.partition("-")[0] for row_id in row_ids)
    touched = defaultdict[str, set[str]](set)
    longest: dict[tuple[str, str], Overlap] = {}
    for origin, of_source in found.items():
        for overlap in of_source:
            task, row_id = overlap["task"], f"{origin}:{overlap['key']}"
            if row_id in copies:
                touched[task].add(overlap["example"])
                if overlap["words"] > longest.get((task, row_id), {"words": 0})["words"]:
                    longest[task, row_id] = overlap | {"origin": origin}
    counts, shown = defaultdict[str, Counter[str]](Counter), defaultdict[str, list[Overlap]](list)
    for task, row_id in sorted(longest, key=lambda each: (each[0], -longest[each]["words"], each[1])):
        overlap = longest[task, row_id]
        counts[task][overlap["source"]] += copies[row_id]
        shown[task].append(overlap)
    return MixOverlaps(
        rows=len(row_ids),
        overlapping=sum(copies[row_id] for row_id in dict.fromkeys(row_id for _, row_id in longest)),
        counts={task: dict(by_source.most_common()) for task, by_source in counts.items()},
        touched={task: len(names) for task, names in sorted(touched.items())},
        examples=texts.examples,
        too_short=texts.too_short,
        shown=[overlap for entries in shown.values() for overlap in entries[:SHOWN_EXAMPLES]],
    )
