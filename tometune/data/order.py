"""The one order of a source's rows, however they are spread over files: by key, then by source and what was said."""

import json
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tometune.common.cache import cached_folder
from tometune.data.standardise import Standardised

VERSION = 1
"""Raised when the same rows come in another order."""


def in_key_order(source: Standardised, cache: Path) -> np.ndarray:
    """Return the numbers of all rows by key; of equal keys by the name of their source, then by a hash of the messages.

    Rows that are still equal are the same text of the same source, letter by letter. Only rows that share a key and a
    source are hashed; what comes out is cached.

    Args:
        source: standardised rows.
        cache: root of the cache.
    """

    def build(folder: Path) -> None:
        np.save(folder / "order.npy", _ordered(source))

    key = {"source": source.fingerprint, "version": VERSION}
    order: np.ndarray = np.load(cached_folder(cache, "order", key, build) / "order.npy")
    return order


def _ordered(source: Standardised) -> np.ndarray:
    """Sort the rows, then the runs of equal ones among themselves."""
    order = np.lexsort((source.labels, source.keys[:, 1], source.keys[:, 0]))
    keys, labels = source.keys[order], source.labels[order]
    same = np.concatenate([(keys[1:] == keys[:-1]).all(axis=1) & (labels[1:] == labels[:-1]), [False]])
    member = same | np.concatenate([[False], same[:-1]])
    places = np.flatnonzero(member)
    if not len(places):
        return order
    run = np.cumsum(~np.concatenate([[False], same[:-1]]))[places]
    rows = order[places]
    hashes = np.empty(len(rows), dtype="S32")
    lying = np.argsort(rows)  # the texts are read as they lie
    for place in lying.tolist():
        said = json.dumps(source.rows[int(rows[place])]["messages"])
        hashes[place] = blake2b(said.encode(), digest_size=16).hexdigest().encode()
    order[places] = rows[np.lexsort((hashes, run))]
    return order
