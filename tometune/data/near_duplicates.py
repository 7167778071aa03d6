"""Near-duplicates, found with rensa: MinHash signatures over runs of words, and an LSH index of the rows that stay.

`mix` drops a row if its estimated Jaccard similarity to a row that stays reaches the threshold. Memory: about 2 KB per
row that stays.
"""

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tometune.common.progress import progress
from tometune.data.conversations import normalised, texts_of
from tometune.data.features import cached_array, slices
from tometune.data.parallel import in_order

if TYPE_CHECKING:
    from tometune.data.standardise import Standardised

VERSION = 3  # raised when the same rows give other near-duplicates
PERMUTATIONS = 128  # of a signature; at a similarity of 0.8 the estimate has a standard deviation of 0.035

# With 8 permutations each: a pair of similarity 0.8 is compared with probability 0.95, one of 0.9 with 0.9999.
BANDS = 16
WORDS = 3  # of a run
SEED = 42
STEP = 2_000  # rows that a process signs at a time

Rows = tuple["Standardised", np.ndarray]  # a source and the numbers of its rows in the order of comparison


def near_duplicates(fixed: Rows, rows: Rows, threshold: float, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Find rows that are similar to a fixed row, or to an earlier row that stays.

    Returns:
        Which of `rows` are near-duplicates, and which of these are near a `fixed` row; both of shape (rows), bool.
    """
    key: dict[str, Any] = {"version": VERSION, "threshold": threshold}
    for name, (source, numbers) in (("fixed", fixed), ("rows", rows)):
        key[name] = {"source": source.fingerprint, "rows": sha256(source.keys[numbers].tobytes()).hexdigest()[:20]}
    found = cached_array(cache, "near", key, lambda: _first_similar(fixed, rows, threshold))
    return found >= 0, (found >= 0) & (found < len(fixed[1]))


def _first_similar(fixed: Rows, rows: Rows, threshold: float) -> np.ndarray:
    """Return for each row the first row that stays and is similar to it, counting `fixed` before `rows`; else -1."""
    from rensa import RMinHashLSH

    index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    kept: dict[int, Any] = {}
    found = np.full(len(rows[1]), -1, dtype=np.int32)
    place = 0
    with progress("rows compared for near-duplicates", len(fixed[1]) + len(rows[1])) as advance:
        for source, numbers in (fixed, rows):
            parts = (numbers[start : start + STEP] for start in range(0, len(numbers), STEP))
            for signatures in in_order(partial(_signatures, source.folder / "rows.arrow"), parts):
                for signature in signatures:
                    first = -1
                    if place >= len(fixed[1]):
                        candidates = sorted(index.query(signature))
                        similar = (other for other in candidates if signature.jaccard(kept[other]) >= threshold)
                        found[place - len(fixed[1])] = first = next(similar, -1)
                    if first < 0:
                        index.insert(place, signature)
                        kept[place] = signature
                    place += 1
                advance(len(signatures))
    return found


def _signatures(path: Path, numbers: np.ndarray) -> list[Any]:
    """Return the signatures of some rows in the given order, in any process."""
    from rensa import RMinHash

    order = np.argsort(numbers)
    rows = pa.Table.from_batches(slices(path, int(numbers.min()), int(numbers.max()) + 1))
    runs: list[list[str]] = [[]] * len(numbers)
    for place in order.tolist():
        row = int(numbers[place] - numbers.min())
        messages, extras = (rows.column(name)[row].as_py() for name in ("messages", "extras"))
        # Without its tools: rows that share a long list of them would be similar, whatever is said.
        runs[place] = runs_of(normalised(texts_of(messages, extras)[0]))
    return RMinHash.from_token_sets(runs, PERMUTATIONS, SEED)  # type: ignore[no-any-return]


def runs_of(text: str) -> list[str]:
    """Return the runs of `WORDS` words of a normalised text; the words of a shorter one."""
    words = text.split(" ")
    return [" ".join(run) for run in zip(*(words[shift:] for shift in range(WORDS)), strict=False)] or words
