"""Standardising: any source as role/content messages with a 128-bit key of their text, cached as Arrow.

A cached source is a folder of `rows.arrow` (key, source, messages), and in compact files of their own what a warm start
needs of it: `keys.npy` (16 bytes a row), `labels.npy` and `labels.json` (where each row is from), `scores.npy` (if the
source has any).
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from tometune.common.cache import cached_folder
from tometune.common.progress import progress
from tometune.config.data import SourceConfig
from tometune.data.parallel import in_order
from tometune.data.rows import KEY_BYTES, SCHEMA, standardised
from tometune.data.sources import fingerprint, read

log = logging.getLogger(__name__)

VERSION = 4
"""Raised when the same source is standardised to other rows."""

LAYOUT = 2
"""Raised when the same rows are kept in other files."""

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Standardised:
    """The usable rows of a source, in its order."""

    fingerprint: str
    """What the rows were made from: content of the source, format, version of the standardising."""

    folder: Path
    """Where it is kept."""

    rows: Dataset
    """Columns `key` (16 bytes), `source`, `messages`; memory-mapped."""

    keys: np.ndarray
    """Shape (rows, 2), uint64: the 128 bits of each key, the higher half first."""

    labels: np.ndarray
    """Shape (rows), int32: where each row is from, as its place in `names`."""

    names: list[str]
    """The sources that rows are from, in the order of their names."""

    scores: np.ndarray | None
    """Shape (rows), float32: the score that each row came with, NaN where it had none; None if no row has one."""

    read: int
    """Rows of the source, usable or not."""

    dropped: Counts
    """Rows left out, by reason, by source."""

    mended: Counts
    """Rows changed, by reason, by source."""


def standardise(source: SourceConfig, key: str, cache: Path) -> Standardised:
    """Return the source's usable rows, from the cache or read now.

    Args:
        source: what to read.
        key: where it stands in the config, for errors.
        cache: root of the cache.

    Raises:
        UserError: the source is missing, broken or of an unknown shape.
    """
    made_from = {"source": fingerprint(source, key), "format": str(source.format), "standardise": VERSION}
    kept_as = {**made_from, "layout": LAYOUT, "score": source.score}
    folder = cached_folder(cache, "sources", kept_as, lambda target: _build(source, key, target))
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    scores = folder / "scores.npy"
    return Standardised(
        fingerprint="{source}/{format}/v{standardise}".format(**made_from),
        folder=folder,
        rows=Dataset.from_file(str(folder / "rows.arrow")),
        keys=np.load(folder / "keys.npy").view(">u8").astype(np.uint64),
        labels=np.load(folder / "labels.npy"),
        names=json.loads((folder / "labels.json").read_text(encoding="utf-8")),
        scores=np.load(scores) if scores.exists() else None,
        **counts,
    )


def _build(source: SourceConfig, key: str, folder: Path) -> None:
    """Write the files of the folder, a batch at a time."""
    dropped: dict[str, Counter[str]] = {}
    mended: dict[str, Counter[str]] = {}
    keys, labels, scores = bytearray(), list[np.ndarray](), list[np.ndarray]()
    names: dict[str, int] = {}
    total = 0
    work = partial(standardised, source=source)
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress(f"{key}: rows standardised") as advance,
    ):
        for piece in in_order(work, read(source, key)):
            rows = piece.rows
            writer.write_batch(rows)
            keys += b"".join(rows.column("key").to_pylist())
            labels.append(_coded(rows.column("source"), names))
            scores.append(piece.scores)
            total += piece.read
            advance(piece.read)
            for counts, more in ((dropped, piece.dropped), (mended, piece.mended)):
                for reason, by_source in more.items():
                    counts.setdefault(reason, Counter()).update(by_source)
    np.save(folder / "keys.npy", np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_BYTES))
    ordered = sorted(names)
    places = np.array([ordered.index(name) for name in names], dtype=np.int32)
    np.save(folder / "labels.npy", places[_joined(labels, np.int32)])
    (folder / "labels.json").write_text(json.dumps(ordered), encoding="utf-8")
    score = _joined(scores, np.float32)
    if not np.isnan(score).all():
        np.save(folder / "scores.npy", score)
    (folder / "counts.json").write_text(
        json.dumps({"read": total, "dropped": dropped, "mended": mended}), encoding="utf-8"
    )
    log.info("%s: %s rows standardised", key, f"{total:,}")


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    """Concatenate, also nothing."""
    return np.concatenate([*parts, np.empty(0, dtype=kind)]).astype(kind)


def _coded(labels: pa.StringArray, names: dict[str, int]) -> np.ndarray:
    """Return labels as numbers; a new name gets the next one."""
    encoded = labels.dictionary_encode()
    places = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
    coded: np.ndarray = np.array([*places, -1], dtype=np.int32)[encoded.indices.to_numpy()]
    return coded
