"""Sources as role/content messages, each row with a 128-bit key of its text, cached as Arrow.

A cached source is a folder with `rows.arrow` (the columns of `SCHEMA`) and `counts.json` (what became of the rows).
"""

import json
import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tometune.common.cache import cached_folder, folder_of
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.config.data import BadRows, DataConfig, Preference, SourceConfig
from tometune.data.conversations import compared_texts, encodable, extras_of, fix_conversation, normalised
from tometune.data.formats import SOURCE_COLUMNS, Reader
from tometune.data.local_files import Batch
from tometune.data.parallel import in_order
from tometune.data.sources import fingerprint, ordered_files, read
from tometune.data.turns import FormatError, number_of

if TYPE_CHECKING:  # worker processes import this module, and `datasets` takes them a second
    from datasets import Dataset

log = logging.getLogger(__name__)

VERSION = 6  # raised when the same source gives other rows
LAYOUT = 5  # raised when the same rows are stored in other files

KEY_BYTES = 16
# What a row holds beyond its messages is JSON in `extras`, see `conversations`; null for ordinary rows. A row without a
# score has NaN.
SCHEMA = pa.schema(
    {
        "key": pa.binary(),  # of `KEY_BYTES`
        "source": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "extras": pa.string(),
        "score": pa.float32(),
    }
)
LARGEST_SCORE = float(np.finfo(np.float32).max)  # a larger finite one counts as none
KEY = "\0key"  # placeholder for the key of a source in cached errors, because sources can share cached rows
SHOWN = 3  # rows that cannot be read of which an error shows the place and the defect
ADDRESS = re.compile(r"\w+://")  # of a page, different in each row, so not the name of a source
FEWEST = 100  # rows of a source from which on `data.max_bad_share` applies

Counts = dict[str, dict[str, int]]  # rows by reason and source
KINDS = ("dropped", "malformed", "mended", "unread")  # of counts


@dataclass(frozen=True)
class Standardised:
    """The usable rows of a source, in its order."""

    fingerprint: str  # content of the source, format, and version of the standardising
    folder: Path
    rows: "Dataset"  # the columns of `SCHEMA`; memory-mapped
    keys: np.ndarray  # (rows,) S16; they compare like their 16 bytes, but as scalars they lose null bytes at their end
    labels: np.ndarray  # (rows,) int32: the source of each row as an index into `names`
    names: list[str]  # sorted
    scores: np.ndarray | None  # (rows,) float32, NaN for rows without a score; None if no row has one
    read: int  # rows of the source, usable or not
    dropped: Counts  # on purpose
    mended: Counts  # rows that were fixed
    malformed: Counts = field(default_factory=dict)  # rows that cannot be read
    unread: Counts = field(default_factory=dict)  # rows by column or `turn.KEY` that was not used
    bad: list[tuple[str, str]] = field(default_factory=list)  # place and defect of the first malformed rows


def standardise(source: SourceConfig, key: str, cache: Path) -> Standardised:
    """Return the usable rows of a source, cached; `key` is its key in the config, for errors.

    Raises:
        UserError: the source is missing or broken. Rows that cannot be read are counted, see `check_malformed`.
    """
    import pandas as pd
    from datasets import Dataset

    made_from, stored_as = _key(source, key)
    folder = cached_folder(cache, "sources", stored_as, lambda target: _build(source, key, target), alone=True)
    rows = Dataset.from_file(str(folder / "rows.arrow"))
    sources = pd.Categorical(rows.data.column("source").to_pandas())
    scores = rows.data.column("score").to_numpy()
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    names = [encodable(str(file)) for file in ordered_files(source, key)] if counts["bad"] else []
    for entry in counts["bad"]:
        origin, _, line = entry[0].rpartition(", ")
        entry[:] = f"{names[int(origin)] if names else origin}, {line}", entry[1].replace(KEY, key)
    return Standardised(
        fingerprint="{source}/{format}/v{standardise}".format(**made_from),
        folder=folder,
        rows=rows,
        keys=rows.data.column("key").to_numpy().astype(f"S{KEY_BYTES}"),
        labels=sources.codes.astype(np.int32),
        names=sources.categories.tolist(),
        scores=None if np.isnan(scores).all() else scores,
        **counts,
    )


def is_cached(source: SourceConfig, key: str, cache: Path) -> bool:
    """Return whether `standardise` finds the rows in the cache."""
    return folder_of(cache, "sources", _key(source, key)[1]).exists()


def _key(source: SourceConfig, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what decides the rows of a standardised source, and that together with how they are stored."""
    read_as = [str(source.format), *(f"{role}={name}" for role, name in sorted(source.columns.items()))]
    read_as += [] if source.preference is Preference.refuse else [str(source.preference)]
    made_from = {"source": fingerprint(source, key), "format": ",".join(read_as), "standardise": VERSION}
    return made_from, {**made_from, "layout": LAYOUT, "score": source.score}


def _build(source: SourceConfig, key: str, folder: Path) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    bad: list[tuple[str, str]] = []
    total = 0
    numbers = {str(file): str(number) for number, file in enumerate(ordered_files(source, key))}
    batches = (replace(batch, origin=numbers.get(batch.origin, batch.origin)) for batch in read(source, key))
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress(f"{key}: rows standardised") as advance,
    ):
        for rows, counted, shown, size in in_order(partial(_standardise_batch, source), batches):
            writer.write_batch(rows)
            counts.update(counted)
            bad += shown
            total += size
            advance(size)
    nested: dict[str, Counts] = {kind: {} for kind in KINDS}
    for (kind, reason, name), count in counts.items():
        nested[kind].setdefault(reason, {})[name] = count
    found = {"read": total, **nested, "bad": bad[:SHOWN]}
    (folder / "counts.json").write_text(json.dumps(found), encoding="utf-8")
    log.info("%s: %s rows standardised", key, f"{total:,}")


def _standardise_batch(
    source: SourceConfig, batch: Batch
) -> tuple[pa.RecordBatch, Counter[tuple[str, str, str]], list[tuple[str, str]], int]:
    """Standardise a batch of rows, in any process.

    Returns:
        The usable rows, of `SCHEMA`; how many rows there are by kind, reason and source; place and defect of the first
        malformed ones; and the number of rows read.
    """
    reader = Reader(source, KEY)
    counts: Counter[tuple[str, str, str]] = Counter()
    bad: list[tuple[str, str]] = []
    usable: list[dict[str, Any]] = []
    unnamed = source.id or str(source.kind)
    naming = [column for column in SOURCE_COLUMNS if column not in source.columns.values()]
    for index, row in enumerate(batch.rows):
        name = unnamed
        try:
            if isinstance(row, FormatError):
                raise row
            texts = ((column, row.get(column)) for column in naming)
            named = next((c for c, text in texts if text and isinstance(text, str) and not ADDRESS.match(text)), None)
            name = encodable(row[named]) if named else unnamed
            found = reader.read(row)
        except FormatError as error:
            counts["malformed", error.reason, name] += 1
            bad.append((encodable(batch.where(index)), encodable(str(error))))
            continue
        counts.update(("unread", encodable(column), name) for column in found.unread - {named})
        if found.dropped:
            counts["dropped", found.dropped, name] += 1
            continue
        turns, reasons = fix_conversation(found.turns)
        given = extras_of(turns, found.tools) if turns else None
        extras = given and encodable(given)
        reasons |= {"broken_character_replaced"} if extras is not given else set()
        counts.update(("mended" if turns else "dropped", reason, name) for reason in sorted(reasons))
        if turns:
            messages = [{"role": turn.role, "content": turn.text} for turn in turns]
            score = number_of(row.get(source.score))
            if LARGEST_SCORE < abs(score) < math.inf:
                score = math.nan
            text = normalised(compared_texts(turns, found.tools))
            text_key = blake2b(text.encode(), digest_size=KEY_BYTES).digest()
            usable.append(dict(zip(SCHEMA.names, (text_key, name, messages, extras, score), strict=True)))
    rows = pa.RecordBatch.from_pylist(usable, schema=SCHEMA)
    return rows, counts, bad[:SHOWN], len(batch)


def check_malformed(source: Standardised, key: str, config: DataConfig) -> None:
    """Raise a `UserError` that shows the first rows that cannot be read, if they are too many or none are wanted."""
    by_reason = {reason: sum(counts.values()) for reason, counts in source.malformed.items()}
    count = sum(by_reason.values())
    if not count:
        return
    if source.read >= FEWEST and count / source.read > config.max_bad_share:
        fix = f"fix them, or raise data.max_bad_share={config.max_bad_share:g}"
    elif config.bad_rows is BadRows.stop:
        fix = "fix them, or set data.bad_rows=drop to leave them out"
    elif not len(source.rows):
        fix = "no row is left"
    else:
        return
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in by_reason.items())
    shown: dict[tuple[str, str], list[str]] = {}
    for place, defect in source.bad:
        file, _, line = place.rpartition(", ")
        shown.setdefault((file, defect), []).append(line)
    first = " | ".join(f"{file}, {' and '.join(lines)}: {defect}" for (file, defect), lines in shown.items())
    raise UserError(f"{key}: {count:,} of {source.read:,} rows cannot be read ({reasons}); {fix}: {first}")
