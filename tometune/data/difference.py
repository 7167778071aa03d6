"""The difference of two mixes: which rows are in both, and how their sources, lengths, tokens and scores differ."""

from typing import Any

import numpy as np

from tometune.data.profile import Profile, described, repeats


def between(first: Profile, second: Profile, names: tuple[str, str]) -> dict[str, Any]:
    """Return the difference of two mixes as plain values.

    Two rows are the same if their texts are, white space and case aside; a text that one mix has several times counts
    as often as both have it.

    Args:
        first: the mix that is prepared.
        second: the one beside it.
        names: what they are called.
    """
    in_both, shared_first, shared_second = _shared(first, second)
    sides = [_side(mix, shared) for mix, shared in ((first, shared_first), (second, shared_second))]
    return {
        "names": list(names),
        "both": in_both,
        "only": [len(first) - in_both, len(second) - in_both],
        "sources": _sources(first, second, shared_first, shared_second),
        "sides": sides,
    }


def _shared(first: Profile, second: Profile) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how many rows are in both, and which rows of each that are."""
    marks = [_numbered(mix.keys) for mix in (first, second)]
    masks = [np.isin(mine, other) for mine, other in (marks, reversed(marks))]
    return int(masks[0].sum()), masks[0], masks[1]


def _numbered(keys: np.ndarray) -> np.ndarray:
    """Return the keys with the number of each among its equals, so that all are different."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = np.arange(len(keys)) - starts[np.cumsum(new) - 1]
    marked: np.ndarray = np.char.add(keys, numbers.astype("S"))
    return marked


def _side(mix: Profile, shared: np.ndarray) -> dict[str, Any]:
    """Return what there is to say of one of the two, and of the rows that only it has."""
    own = ~shared
    scores = None if mix.scores is None else mix.scores[~np.isnan(mix.scores)]
    return {
        "rows": len(mix),
        "sources": len(mix.names),
        "repeats": sum(repeats(mix).values()),
        "characters": described(mix.characters),
        "turns": described(mix.turns),
        "tokens": None if mix.tokens is None else described(mix.tokens),
        "scores": None if scores is None or not len(scores) else {**described(scores), "rows": len(scores)},
        "own": {
            "rows": int(own.sum()),
            "characters": described(mix.characters[own]),
            "turns": described(mix.turns[own]),
            "tokens": None if mix.tokens is None else described(mix.tokens[own]),
        },
    }


def _sources(first: Profile, second: Profile, *shared: np.ndarray) -> list[dict[str, Any]]:
    """Return for each source its rows in both mixes and in each alone, the largest difference first.

    A shared row is counted under the first mix's name for it: base and pool may call one text's source differently.
    """
    counts: dict[str, list[int]] = {}
    for side, (mix, mask) in enumerate(zip((first, second), shared, strict=True)):
        for name, rows in mix.by_source():
            entry = counts.setdefault(name, [0, 0, 0, 0])
            entry[0] += int((rows & mask).sum()) if side == 0 else 0
            entry[1 + side] += int((rows & ~mask).sum())
            entry[3] += int(rows.sum()) if side == 1 else 0
    rows_of_first = {name: int(rows.sum()) for name, rows in first.by_source()}
    found = [
        {"source": name, "both": both, "only": [mine, other], "rows": [rows_of_first.get(name, 0), rows]}
        for name, (both, mine, other, rows) in counts.items()
    ]
    return sorted(found, key=lambda entry: (-sum(entry["only"]), -entry["both"]))
