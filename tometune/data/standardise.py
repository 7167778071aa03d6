"""Standardising: any source as role/content messages with a 128-bit key of their text, cached as Arrow."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from tometune.caching import cached_folder
from tometune.config.data import SourceConfig
from tometune.config.errors import UserError
from tometune.data import formats
from tometune.data.conversations import encodable, mend, normalised
from tometune.data.readers import Batch, Row
from tometune.data.sources import fingerprint, read

log = logging.getLogger(__name__)

VERSION = 3
"""Raised when the same source is standardised to other rows."""

SCHEMA = pa.schema(
    {
        "key": pa.binary(),
        "source": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)
LABELS = ("source", "dataset")
"""Columns that say where a row is from."""

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Standardised:
    """The usable rows of a source, in its order."""

    fingerprint: str
    """What the rows were made from: content of the source, format, version of the standardising."""

    rows: Dataset
    """Columns `key` (16 bytes), `source`, `messages`; memory-mapped."""

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
    folder = cached_folder(cache, "sources", made_from, lambda target: _build(source, key, target))
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    identity = "{source}/{format}/v{standardise}".format(**made_from)
    return Standardised(identity, Dataset.from_file(str(folder / "rows.arrow")), **counts)


def text_key(messages: list[formats.Turn]) -> bytes:
    """Return the 128-bit BLAKE2b hash of a conversation's normalised text."""
    text = normalised(text for _, text in messages)
    return blake2b(text.encode(), digest_size=16).digest()


def _build(source: SourceConfig, key: str, folder: Path) -> None:
    """Write rows.arrow and counts.json."""
    dropped: dict[str, Counter[str]] = {}
    mended: dict[str, Counter[str]] = {}
    total = 0
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in read(source, key):
            rows = list(_rows(batch, source, dropped, mended))
            total += len(batch.rows)
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    counts = {"read": total, "dropped": dropped, "mended": mended}
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    log.info("%s: %s rows standardised", key, f"{total:,}")


def _rows(
    batch: Batch, source: SourceConfig, dropped: dict[str, Counter[str]], mended: dict[str, Counter[str]]
) -> Iterator[dict[str, Any]]:
    """Yield the standardised rows of a batch and count what was done to them."""
    read_turns = formats.reader(formats.format_of(batch.rows, source.format, batch.origin))
    for index, row in enumerate(batch.rows):
        try:
            turns, reasons = mend(read_turns(row))
        except formats.FormatError as error:
            raise UserError(f"{batch.where(index)}: {error}") from None
        origin = _origin(row) or source.id or str(source.kind)
        counts = mended if turns else dropped
        for reason in reasons:
            counts.setdefault(reason, Counter())[origin] += 1
        if turns:
            messages = [{"role": role, "content": text} for role, text in turns]
            yield {"key": text_key(turns), "source": origin, "messages": messages}


def _origin(row: Row) -> str | None:
    """Return where a row says it is from."""
    for name in LABELS:
        label = row.get(name)
        if isinstance(label, str) and label:
            return encodable(label)
    return None
