"""The evaluation texts as an index of their runs of words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tometune.data.contamination.words import Words, words_of

RUN = 13
"""Words in a run: GPT-3's appendix C and lm-evaluation-harness take 13."""

SHORTEST = 8
"""An evaluation text of fewer words than `RUN` is looked for as a whole if it has at least that many.

Eight is where GPT-3's appendix C ends: it takes the 5th percentile of a task's lengths, but never below 8 words.
"""

SHARED = 3
"""A run in more evaluation texts, of more examples, than that is the task's own boilerplate."""

FILTER_BITS = 24


class HeldOutText(NamedTuple):
    """A text of an evaluation example: an input, a context or a reference."""

    task: str
    example: str
    text: str


@dataclass(frozen=True)
class Table:
    """The distinct runs of one length."""

    length: int
    """Words in each."""

    hashes: np.ndarray
    """Sorted, uint64."""

    first: int
    """Number of the first of these runs among those of all lengths."""

    present: np.ndarray
    """Whether any of them begins with these `FILTER_BITS` bits: nearly every run of a training row ends here."""

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in `hashes` that hold one of these runs, and the number of the run at each."""
        likely = np.flatnonzero(self.present[(hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)])
        places = np.searchsorted(self.hashes, hashes[likely])
        same = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes[likely]
        return likely[same], places[same] + self.first


@dataclass(frozen=True)
class Index:
    """What is looked for. A text that several examples share, e.g. a paragraph with several questions, is one."""

    words: Words
    """The words of all distinct texts that are long enough."""

    begins: np.ndarray
    """First word of each text."""

    lengths: np.ndarray
    """Words of each text."""

    owners: list[list[tuple[str, str]]]
    """The (task, example) of each text."""

    tables: list[Table]
    """The runs, a table a length."""

    run_words: np.ndarray
    """For each run the word at which it begins, in one of its texts."""

    run_lengths: np.ndarray
    """Words of each run."""

    pairs: np.ndarray
    """(run, text), sorted; int64 of shape (n, 2)."""

    boilerplate: np.ndarray
    """Whether a run is in more than `SHARED` texts of more than `SHARED` examples; bool."""

    examples: dict[str, int]
    """Examples by task."""

    too_short: dict[str, int]
    """Texts of fewer than `SHORTEST` words by task: these are not looked for."""

    def texts_of(self, run: int) -> np.ndarray:
        """Return the numbers of the texts that hold a run."""
        start, end = np.searchsorted(self.pairs[:, 0], [run, run + 1])
        texts: np.ndarray = self.pairs[start:end, 1]
        return texts

    def spelt(self, run: int) -> bytes:
        """Return the words of a run."""
        return self.words.spelt(int(self.run_words[run]), int(self.run_lengths[run]))


def index_of(texts: Sequence[HeldOutText]) -> Index:
    """Make the index; a text that is too short is counted and left out."""
    examples = Counter(task for task, _ in dict.fromkeys((text.task, text.example) for text in texts))
    too_short: Counter[str] = Counter()
    owners: dict[bytes, dict[tuple[str, str], None]] = {}
    given = words_of(pa.array([text.text for text in texts], type=pa.string()))
    begin = 0
    for row, border in zip(given.order.tolist(), given.borders.tolist(), strict=True):
        if border - begin < SHORTEST:
            too_short[texts[row].task] += 1
        else:
            content = given.spelt(begin, border - begin)
            owners.setdefault(content, {})[texts[row].task, texts[row].example] = None
        begin = border + 1
    words = words_of(pa.array([content.decode() for content in owners], type=pa.string()))
    ends = words.borders
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    order = words.order
    kept = [list(found) for found in owners.values()]
    return _indexed(words, begins, ends - begins, [kept[row] for row in order], dict(examples), dict(too_short))


def _indexed(
    words: Words,
    begins: np.ndarray,
    lengths: np.ndarray,
    owners: list[list[tuple[str, str]]],
    examples: dict[str, int],
    too_short: dict[str, int],
) -> Index:
    """Collect the runs of the texts by length."""
    tables, run_words, run_lengths, pairs = [], [], [], []
    first = 0
    for length in sorted({int(length) for length in np.minimum(lengths, RUN)}):
        mine = np.flatnonzero(np.minimum(lengths, RUN) == length)
        counts = lengths[mine] - length + 1
        texts = np.repeat(mine, counts)
        steps = np.arange(len(texts)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = begins[texts] + steps
        hashes, samples, runs = np.unique(words.runs(length)[places], return_index=True, return_inverse=True)
        present = np.zeros(2**FILTER_BITS, dtype=bool)
        present[(hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)] = True
        tables.append(Table(length, hashes, first, present))
        run_words.append(places[samples])
        run_lengths.append(np.full(len(hashes), length))
        pairs.append(np.unique(np.stack([runs.ravel() + first, texts], axis=1), axis=0))
        first += len(hashes)
    none = np.zeros(0, dtype=np.int64)
    all_pairs = np.concatenate(pairs) if pairs else none.reshape(0, 2)
    return Index(
        words,
        begins,
        lengths,
        owners,
        tables,
        np.concatenate(run_words) if run_words else none,
        np.concatenate(run_lengths) if run_lengths else none,
        all_pairs,
        _boilerplate(all_pairs, owners, first),
        examples,
        too_short,
    )


def _boilerplate(pairs: np.ndarray, owners: list[list[tuple[str, str]]], runs: int) -> np.ndarray:
    """Tell which runs are in many texts of many examples: several references of one example do not make one."""
    many = np.bincount(pairs[:, 0], minlength=runs) > SHARED
    found = np.zeros(runs, dtype=bool)
    chosen = pairs[many[pairs[:, 0]]]
    if not len(chosen):
        return found
    numbers: dict[tuple[str, str], int] = {}
    names = [[numbers.setdefault(owner, len(numbers)) for owner in text] for text in owners]
    counts = np.array([len(text) for text in names])
    examples = np.array([number for text in names for number in text])
    starts = np.cumsum(counts) - counts
    repeated = np.repeat(chosen, counts[chosen[:, 1]], axis=0)
    within = np.arange(len(repeated)) - np.repeat(
        np.cumsum(counts[chosen[:, 1]]) - counts[chosen[:, 1]], counts[chosen[:, 1]]
    )
    owned = np.unique(np.stack([repeated[:, 0], examples[starts[repeated[:, 1]] + within]], axis=1), axis=0)
    found = np.bincount(owned[:, 0], minlength=runs) > SHARED
    return found & many
