"""Tokens: the rows of a mix as token ids, with labels on the assistant's turns only."""

import json
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from filelock import FileLock

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.data.encoder import Encoder, encoded, settled
from tometune.data.labels import INDEX, SCHEMA, labelled, verify
from tometune.data.mix import Mix, Part
from tometune.data.template import Template

log = logging.getLogger(__name__)

VERSION = 4
"""Raised when the same rows are tokenised to other ids or labels, or are kept otherwise."""


@dataclass(frozen=True)
class Counts:
    """What became of the rows."""

    rows: int = 0
    """Rows of the mix."""

    tokens: int = 0
    """Tokens after cutting, of the rows that are trained on."""

    trainable_tokens: int = 0
    """Tokens with a label."""

    truncated: int = 0
    """Rows cut at `max_length`."""

    tokens_cut: int = 0
    """Tokens lost to cutting; of a row with more characters than `max_length` of the longest tokens have, at least."""

    without_labels: int = 0
    """Rows with nothing to train on after cutting; they stay in the mix and are left out of training."""

    special_text: int = 0
    """Rows whose texts spell a special token; it is encoded as plain text."""


@dataclass(frozen=True)
class Tokenised:
    """Rows of a source, tokenised."""

    rows: Dataset | None
    """Columns `input_ids` and `labels`, memory-mapped; None where no row trains anything."""

    index: np.ndarray
    """Shape (rows, len(INDEX)), int64, by row number; each row is there once."""

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """Return the lines of the index for these row numbers, in their order."""
        found: np.ndarray = self.index[np.searchsorted(self.index[:, 0], chosen)]
        assert (found[:, 0] == chosen).all(), "every chosen row was tokenised"
        return found


@dataclass(frozen=True)
class Tokens:
    """A mix ready for training."""

    dataset: Dataset
    """Columns `input_ids` and `labels`, lists of int32, memory-mapped; rows with nothing to train on are left out."""

    counts: Counts

    lengths: np.ndarray
    """Tokens of each row of the mix after cutting; 0 for a row that is left out."""


def tokenise(mix: Mix, tokenizer: Any, max_length: int, cache: Path) -> Tokens:
    """Return the tokens of a mix, from the cache or made now.

    Args:
        mix: the conversations.
        tokenizer: with a chat template whose date is pinned.
        max_length: tokens a row may have; what is longer is cut at the end.
        cache: root of the cache.

    Raises:
        UserError: `max_length` is less than the template itself needs, or no row has anything to train on.
        RuntimeError: the labels do not decode to the assistant's texts.
    """
    template = Template(tokenizer)
    overhead = template.overhead()
    if max_length < overhead:
        raise UserError(
            f"trainer.max_length={max_length}: the chat template alone takes {overhead} tokens; raise it above that"
        )
    if not template.ends:
        log.warning("the chat template ends an answer with no special token, so training does not teach where to stop")
    made_by = _made_by(tokenizer, max_length)
    found = [(part, tokenised(part, made_by, template, max_length, cache)) for part in mix.parts]
    index = np.concatenate([rows.of(part.chosen) for part, rows in found])
    counts = _counts(index)
    if counts.without_labels == counts.rows:
        raise UserError(f"trainer.max_length={max_length}: no row has an answer left after cutting; raise it")
    if counts.without_labels:
        log.warning("%s rows have nothing to train on after cutting and are left out", f"{counts.without_labels:,}")
    return Tokens(_joined(found), counts, index[:, 2])


def _made_by(tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return all that makes the tokens beside the rows."""
    return {
        "tokenizer": _hash(settled(tokenizer.backend_tokenizer).to_str()),
        "special_tokens": tokenizer.special_tokens_map,  # templates write some of them by these names
        "chat_template": _hash(tokenizer.chat_template),  # with the pinned date in it
        "max_length": max_length,
        "mask": "assistant turns and the end of each",
        "tokens": VERSION,
    }


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:20]


def _counts(index: np.ndarray) -> Counts:
    """Return what became of rows, from their lines of the index."""
    _, places, lengths, trained, cut, special = index.T
    return Counts(
        rows=len(index),
        tokens=int(lengths.sum()),
        trainable_tokens=int(trained.sum()),
        truncated=int((cut > 0).sum()),
        tokens_cut=int(cut.sum()),
        without_labels=int((places < 0).sum()),
        special_text=int(special.sum()),
    )


def _joined(found: list[tuple[Part, Tokenised]]) -> Dataset:
    """Return the rows that train something, in the order of the mix."""
    tables, places, length = [], [], 0
    for part, rows in found:
        if rows.rows is None:
            continue
        place = rows.of(part.chosen)[:, 1]
        tables.append(rows.rows)
        places.append(place[place >= 0] + length)
        length += len(rows.rows)
    return concatenate_datasets(tables).select(np.concatenate(places))


PIECE = 50_000
"""Rows of a piece, at most."""

CHECKED = 200
"""Rows of a piece whose labels are decoded and compared when it is made."""


def tokenised(part: Part, made_by: dict[str, Any], template: Template, max_length: int, cache: Path) -> Tokenised:
    """Return the tokenised rows of a source, the chosen ones among them, from the cache or made now.

    Args:
        part: the source and what is taken of it.
        made_by: all that makes the tokens beside the rows, as plain values.
        template: of the tokenizer.
        max_length: tokens a row may have; what is longer is cut at the end.
        cache: root of the cache.

    Raises:
        RuntimeError: the labels do not decode to the assistant's texts.
    """
    key = {"source": part.fingerprint, **made_by}
    kind = f"tokens/{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]}"
    found = _together(cache / kind)
    if np.isin(part.chosen, found.index[:, 0]).all():
        return found
    (cache / kind).mkdir(parents=True, exist_ok=True)
    with FileLock(cache / kind / ".lock"):  # others at the same rows wait, and then find them
        for left in (cache / kind).glob(".*/"):  # of a process that was killed: nobody else is at it
            shutil.rmtree(left, ignore_errors=True)
        missing = np.setdiff1d(part.chosen, _together(cache / kind, mend=True).index[:, 0])
        for start in range(0, len(missing), PIECE):
            numbers = missing[start : start + PIECE]
            rows = {"count": len(numbers), "sha256": sha256(numbers.astype("<i8").tobytes()).hexdigest()[:20]}
            build = partial(_build, part.rows.select(numbers), numbers, template, max_length)
            cached_folder(cache, kind, {**key, "rows": rows}, build)
            log.info("%s of %s rows tokenised", f"{start + len(numbers):,}", f"{len(missing):,}")
    return _together(cache / kind)


def _together(folder: Path, mend: bool = False) -> Tokenised:
    """Put the pieces together; of a row that two machines tokenised at once, the first is taken.

    Args:
        folder: of the pieces.
        mend: remove a piece that cannot be read, so that its rows are made again; else it counts as not there.
    """
    tables, indexes, length = [], [np.empty((0, len(INDEX)), dtype=np.int64)], 0
    for piece in sorted(path.parent for path in folder.glob("[!.]*/config.json")):
        try:
            index, table = np.load(piece / "index.npy"), Dataset.from_file(str(piece / "rows.arrow"))
        except (OSError, EOFError, ValueError, pa.ArrowException):
            log.warning("%s: cannot be read; its rows are tokenised again", piece)
            if mend:
                shutil.rmtree(piece)
            continue
        index[:, 1] += np.where(index[:, 1] >= 0, length, 0)
        tables.append(table)
        length += len(table)
        indexes.append(index)
    together = np.concatenate(indexes)
    _, first = np.unique(together[:, 0], return_index=True)
    return Tokenised(concatenate_datasets(tables) if length else None, together[first])


def _build(rows: Dataset, numbers: np.ndarray, template: Template, max_length: int, folder: Path) -> None:
    """Write rows.arrow and index.npy of a piece."""
    encoder = Encoder(template)
    checked = set(np.linspace(0, len(rows) - 1, CHECKED, dtype=int).tolist())
    lines, place = [], 0
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in encoded(rows.select_columns("messages"), template, encoder, max_length):
            stop = batch.start + len(batch.encoded)
            for number in checked.intersection(range(batch.start, stop)):
                row = number - batch.start
                if batch.rendered[row] is batch.clipped[row]:
                    sure = (batch.conversations[row], batch.rendered[row], batch.encoded[row])
                    verify(encoder, *sure, int(numbers[number]))
            table, index = labelled(batch.encoded, max_length)
            index[:, 0] = numbers[batch.start : stop]
            index[index[:, 1] >= 0, 1] += place
            index[:, 5] = [bool(row.stand_ins) for row in batch.rendered]
            lines.append(index)
            place += len(table)
            writer.write_batch(table)
    np.save(folder / "index.npy", np.concatenate(lines))
