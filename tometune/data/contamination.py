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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tometune.common.cache import cached_folder
from tometune.data.ngrams import LENGTH, ROWS, SHORTEST, Index, fold, index_of, search
from tometune.data.parallel import in_order
from tometune.data.standardise import Standardised

log = logging.getLogger(__name__)

VERSION = 2
"""Raised when the same source and the same texts give other overlaps."""

SHARED = 3
"""A sequence in more evaluation texts than that, of more examples, is boilerplate."""

COMMON = 10
"""A sequence in more different rows than that is a stock phrase, as in GPT-3's appendix C."""

STRETCH = 50
"""Words that are too many for a stock phrase."""

SHOWN_WORDS, SHOWN_EXAMPLES = 60, 5
"""Words kept of an overlap, and overlaps that a report shows per task."""


class EvaluationTexts:
    """The texts of the evaluation that training data must not hold."""

    def __init__(self, texts: Sequence[tuple[str, str, str]]) -> None:
        """Take task, example and text of every input, context and reference."""
        self.texts = texts
        self.digest = sha256(json.dumps(list(texts)).encode()).hexdigest()[:20]
        self.examples = dict(Counter(task for task, _ in dict.fromkeys(text[:2] for text in texts)))
        """Examples by task."""
        owners: dict[str, dict[tuple[str, str], None]] = {}
        too_short: Counter[str] = Counter()
        for task, example, text in texts:
            words = fold(text)
            if len(words) < SHORTEST:
                too_short[task] += 1
            else:
                owners.setdefault(" ".join(words), {})[task, example] = None
        self.too_short = dict(too_short)
        """Texts by task that have fewer than `SHORTEST` words and are not looked for."""
        self.owners = {text: list(examples) for text, examples in owners.items()}
        """The (task, example) of each distinct normalised text: several examples may share a paragraph."""


Overlap = dict[str, Any]
"""A row (`row`, `source`, `key` in hex) and an example (`task`, `example`) that share words: the length of the longest
stretch (`words`) and its first words (`shared`)."""


def overlaps(source: Standardised, texts: EvaluationTexts, cache: Path) -> list[Overlap]:
    """Return the overlaps of all rows of a source, from the cache or searched now.

    They depend on the source and the texts alone, so mixes of any size over one source share them.
    """
    key = {"source": source.fingerprint, "texts": texts.digest, "overlaps": VERSION}
    key |= {"unicode": unicodedata.unidata_version}
    folder = cached_folder(cache, "overlaps", key, lambda target: _build(source, texts, target))
    found: list[Overlap] = json.loads((folder / "overlaps.json").read_text(encoding="utf-8"))
    return found


def _build(source: Standardised, texts: EvaluationTexts, folder: Path) -> None:
    start, count = perf_counter(), len(source.rows)
    listed = folder / "texts.txt"
    listed.write_text("\n".join(texts.owners), encoding="utf-8")
    work = partial(search, rows=source.folder / "rows.arrow", texts=listed)
    hits = np.concatenate([np.empty((0, 4), dtype=np.int64), *in_order(work, range(0, count, ROWS))])
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
    index: Index, owners: list[list[tuple[str, str]]], hits: np.ndarray, keys: np.ndarray
) -> Iterator[tuple[int, int, int, str]]:
    """Yield each row and text that overlap, with the length and the words of the longest shared stretch.

    Args:
        index: of the evaluation texts.
        owners: (task, example) of each text.
        hits: of `search`, over all rows.
        keys: of all rows; rows of one key have one text and count as one.
    """
    if not len(hits):
        return
    # In how many different rows each sequence is.
    _, different = np.unique(keys[hits[:, 0]], axis=0, return_inverse=True)
    once = np.unique(np.stack([hits[:, 2], different.ravel()], axis=1), axis=0)
    rows_with = Counter(once[:, 0].tolist())
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
    for of_row in np.split(hits, np.flatnonzero(np.diff(hits[:, 0])) + 1):
        places, found, lengths = of_row[:, 1:].T
        held = set(found.tolist())
        # n sequences, each beginning a word after the one before, span n + LENGTH - 1 words.
        stretches = [part for part in _stretches(places[lengths == LENGTH]) if len(part) + LENGTH - 1 >= STRETCH]
        is_long = np.isin(places, np.concatenate([places[:0], *stretches])) & (lengths == LENGTH)
        counted = (held - phrases | set(found[is_long].tolist())) - boilerplate
        matching = {text for sequence in counted for text in texts_with[sequence]}
        matching |= {text for sequence in held for text in whole.get(sequence, ()) if sequences[text] <= held}
        for text in sorted(matching):
            in_text = np.isin(found, list(sequences[text]))
            longest = max(_stretches(places[in_text]), key=len)
            first, *others = found[in_text & np.isin(places, longest)].tolist()
            length = min(len(index.texts[text]), LENGTH)
            words = index.words[first : first + length] + [index.words[other + length - 1] for other in others]
            yield int(of_row[0, 0]), text, len(words), " ".join(words[:SHOWN_WORDS])


def _stretches(places: np.ndarray) -> list[np.ndarray]:
    """Split ascending places where one does not follow the one before."""
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


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

    rows: int
    """Rows of the mix."""
    overlapping: int
    """Rows that overlap any example."""
    counts: dict[str, dict[str, int]]
    """Rows by task and source."""
    touched: dict[str, int]
    """Examples by task that some row overlaps."""
    examples: dict[str, int]
    """Examples by task."""
    too_short: dict[str, int]
    """Texts by task that are too short to be looked for."""
    shown: list[Overlap]
    """A few of them by task, longest first, with their `origin`."""


def of_mix(row_ids: Sequence[str], found: Mapping[str, list[Overlap]], texts: EvaluationTexts) -> MixOverlaps:
    """Return the overlaps of a mix.

    Args:
        row_ids: of the mix.
        found: `overlaps` by origin, `base` and `pool`.
        texts: of the evaluation.
    """
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
    for (task, row_id), overlap in sorted(
        longest.items(), key=lambda item: (item[0][0], -item[1]["words"], item[0][1])
    ):
        counts[task][overlap["source"]] += copies[row_id]
        shown[task].append(overlap)
    return MixOverlaps(
        rows=len(row_ids),
        overlapping=sum(copies[row_id] for row_id in {row_id for _, row_id in longest}),
        counts={task: dict(by_source.most_common()) for task, by_source in counts.items()},
        touched={task: len(names) for task, names in sorted(touched.items())},
        examples=texts.examples,
        too_short=texts.too_short,
        shown=[overlap for entries in shown.values() for overlap in entries[:SHOWN_EXAMPLES]],
    )
