"""Tells copies from stock phrases.

A row overlaps an evaluation text if it holds a run of 13 of its words, except that a run is a stock phrase, which does
not count, where

- more than 3 evaluation texts of more than 3 examples hold it: it is the task's own boilerplate; or
- more than 10 different rows of the source hold it: "we ignored 13-grams that matched more than 10 training
  documents, as inspection showed the majority of these to contain common cultural phrases, legal boilerplate, or
  similar content" (GPT-3's appendix C, https://arxiv.org/abs/2005.14165).

Two things count all the same, since a copy may be there many times: a row that holds the whole of an evaluation text of
13 words or more, and, unless it is boilerplate, a stretch of 50 words or more, which is longer than a phrase.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tometune.data.contamination.index import RUN, Index
from tometune.data.contamination.scan import Found

COMMON = 10
"""A run in more training rows than that is a stock phrase."""

STRETCH = 50
"""Words in a row that no stock phrase has."""

SHOWN = 60
"""Words kept of what is shared."""


@dataclass(frozen=True)
class Overlap:
    """A row and an evaluation text that it shares words with."""

    row: int
    text: int
    words: int
    """Length of the longest shared stretch."""

    shared: str
    """Its normalised words, at most `SHOWN`."""


def judge(index: Index, found: Found, same: np.ndarray | None = None) -> list[Overlap]:
    """Return what is an overlap, by row and text.

    Args:
        index: what was looked for.
        found: where it is.
        same: for each place, a number that the rows of one text share: they count as one row. None: all differ.
    """
    if not len(found.rows):
        return []
    once = np.unique(np.stack([found.runs, found.rows if same is None else same], axis=1), axis=0)
    rows_by_run = np.bincount(once[:, 0], minlength=len(index.run_words))
    boilerplate = index.boilerplate[found.runs]
    counted = ~boilerplate & ((rows_by_run[found.runs] <= COMMON) | _stretches(index, found))
    pairs = _pairs(index, found.rows[counted], found.runs[counted])
    by_text = _Runs(index)
    pairs |= set(_whole(index, found, rows_by_run, by_text))
    return [_measured(index, found, by_text, row, text) for row, text in sorted(pairs)]


class _Runs:
    """The runs of each text."""

    def __init__(self, index: Index) -> None:
        order = np.argsort(index.pairs[:, 1], kind="stable")
        self._texts, self._runs = index.pairs[order, 1], index.pairs[order, 0]

    def __getitem__(self, text: int) -> np.ndarray:
        """Return the numbers of a text's runs."""
        start, end = np.searchsorted(self._texts, [text, text + 1])
        runs: np.ndarray = self._runs[start:end]
        return runs


def _stretches(index: Index, found: Found) -> np.ndarray:
    """Tell which places are part of a stretch of `STRETCH` words."""
    long = index.run_lengths[found.runs] == RUN
    follows = np.zeros(len(found.rows), dtype=bool)
    follows[1:] = (np.diff(found.places) == 1) & (np.diff(found.rows) == 0) & long[1:] & long[:-1]
    stretch = np.cumsum(~follows)
    enough: np.ndarray = np.bincount(stretch)[stretch] >= STRETCH - RUN + 1
    return enough


def _pairs(index: Index, rows: np.ndarray, runs: np.ndarray) -> set[tuple[int, int]]:
    """Return (row, text) for every text of the runs in the rows."""
    starts = np.searchsorted(index.pairs[:, 0], runs)
    counts = np.searchsorted(index.pairs[:, 0], runs + 1) - starts
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    texts = index.pairs[np.repeat(starts, counts) + steps, 1]
    both = np.unique(np.stack([np.repeat(rows, counts), texts], axis=1), axis=0)
    return set(map(tuple, both.tolist()))


def _whole(index: Index, found: Found, rows_by_run: np.ndarray, by_text: _Runs) -> Iterator[tuple[int, int]]:
    """Yield the rows that hold all runs of a text of `RUN` words or more, e.g. one that is copied many times."""
    order = np.argsort(found.runs, kind="stable")
    runs = found.runs[order]
    for text in np.flatnonzero(index.lengths >= RUN).tolist():
        wanted = by_text[text]
        if not rows_by_run[wanted].all():
            continue
        low, high = np.searchsorted(runs, [rarest := wanted[rows_by_run[wanted].argmin()], rarest + 1])
        for row in np.unique(found.rows[order[low:high]]).tolist():
            if np.isin(wanted, found.runs[_of_row(found, row)]).all():
                yield row, text


def _of_row(found: Found, row: int) -> slice:
    """Return where the places of a row stand."""
    return slice(*np.searchsorted(found.rows, [row, row + 1]).tolist())


def _measured(index: Index, found: Found, by_text: _Runs, row: int, text: int) -> Overlap:
    """Return an overlap with its longest stretch."""
    inside = _of_row(found, row)
    of_text = np.isin(found.runs[inside], by_text[text])
    runs, places = found.runs[inside][of_text], found.places[inside][of_text]
    stretch = np.cumsum(np.diff(places, prepend=places[0]) > 1)
    lengths = np.bincount(stretch)
    chosen = runs[stretch == lengths.argmax()]
    words = index.spelt(int(chosen[0])).split()
    words += [index.spelt(run).split()[-1] for run in chosen[1 : SHOWN - len(words) + 1].tolist()]
    length = int(index.run_lengths[chosen[0]]) + len(chosen) - 1
    return Overlap(row, text, length, b" ".join(words).decode())
