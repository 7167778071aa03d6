"""Tokens of a mix, cached per source: each row is tokenised once, whichever mixes take it.

Rows that a mix needs and no earlier mix had form a piece: rows.arrow with the rows that have labels, and index.npy with
one line per row. The cells of a table therefore share the tokens of base and pool.
"""

import json
import logging
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import (
    Dataset,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
)
from filelock import FileLock

from tometune.common.cache import cached_folder, remove_damaged
from tometune.common.errors import UserError
from tometune.common.files import disk_errors
from tometune.common.progress import progress
from tometune.data.encoder import Encoder, encode_rows, without_truncation
from tometune.data.labels import INDEX, SCHEMA, label_rows, verify
from tometune.data.mix import Mix, Part
from tometune.data.template import NOTES, Template

log = logging.getLogger(__name__)

VERSION = 5  # raised when the same rows get other ids or labels, or are stored in another way

VERIFIED = 200  # rows of a piece that are decoded and compared with their answers

# Tokenised rows, memory-mapped tables of `SCHEMA`; and their index, (rows, len(INDEX)), sorted by row, each row once.
Pieces = tuple[list[Dataset], np.ndarray]


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a mix."""

    rows: int = 0
    tokens: int = 0  # after truncation, of the rows that are trained on
    trainable_tokens: int = 0  # tokens with a label
    truncated: int = 0  # rows cut at `max_length`
    tokens_cut: int = 0  # a lower bound for rows so long that their end was not tokenised
    without_labels: int = 0  # rows without trainable tokens after truncation: they stay in the mix, training skips them
    special_text: int = 0  # rows whose texts spell a special token; it is encoded as plain text
    template: dict[str, int] = field(default_factory=dict)  # rows by what the chat template could not show, see `NOTES`


@dataclass(frozen=True)
class Tokens:
    """A mix ready for training."""

    dataset: Dataset  # columns `input_ids` and `labels`, lists of int32, memory-mapped; without rows without labels
    counts: Counts
    lengths: np.ndarray  # (rows of the mix,): tokens after truncation, 0 for rows that training skips


def tokenise(mix: Mix, tokenizer: Any, max_length: int, cache: Path) -> Tokens:
    """Return the tokens of a mix, cached; rows longer than `max_length` are cut at the end.

    Raises:
        UserError: the template alone needs more than `max_length` tokens, or no row has anything to train on.
        RuntimeError: the labels do not decode to the assistant's texts.
    """
    template = Template(tokenizer)
    overhead = template.overhead()
    if max_length < overhead:
        raise UserError(
            f"trainer.max_length={max_length}: the chat template alone takes {overhead} tokens; raise it above that"
        )
    if not template.end:
        log.warning("the chat template ends answers without a special token, so the model does not learn to stop")
    made_by = {
        "tokenizer": _hash(without_truncation(tokenizer.backend_tokenizer).to_str()),
        "special_tokens": tokenizer.special_tokens_map,  # templates write some of them by these names
        "chat_template": _hash(tokenizer.chat_template),  # includes the pinned date
        "max_length": max_length,
        "mask": "assistant turns and the end of each",
        "tokens": VERSION,
    }
    tables, numbers, lines, length = [], [], [], 0
    for part in mix.parts.values():
        rows, found = _tokenised(part, made_by, template, max_length, cache)
        chosen = found[np.searchsorted(found[:, 0], part.chosen)]
        assert (chosen[:, 0] == part.chosen).all(), "every chosen row was tokenised"
        lines.append(chosen)
        tables += rows
        numbers.append(chosen[chosen[:, 1] >= 0, 1] + length)
        length += sum(map(len, rows))
    index = np.concatenate(lines)
    _, places, lengths, trained, cut, special, *notes = index.T
    counts = Counts(
        rows=len(index),
        tokens=int(lengths.sum()),
        trainable_tokens=int(trained.sum()),
        truncated=int((cut > 0).sum()),
        tokens_cut=int(cut.sum()),
        without_labels=int((places < 0).sum()),
        special_text=int(special.sum()),
        template={name: int(column.sum()) for name, column in zip(NOTES, notes, strict=True) if column.any()},
    )
    shown = [f"{count:,} rows with {NOTES[name]}" for name, count in counts.template.items()]
    if counts.without_labels == counts.rows:
        if not shown:
            raise UserError(f"trainer.max_length={max_length}: no row has an answer left after truncation; raise it")
        lost = "; ".join(shown)
        raise UserError(f"model: its chat template leaves nothing to train on ({lost}); choose another model")
    for line in shown:
        log.warning("%s", line)
    if counts.without_labels:
        log.warning("%s rows skipped: nothing left to train on", f"{counts.without_labels:,}")
    return Tokens(concatenate_datasets(tables).select(np.concatenate(numbers)), counts, lengths)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:20]


def _tokenised(part: Part, made_by: dict[str, Any], template: Template, max_length: int, cache: Path) -> Pieces:
    """Return tokenised rows of a source, the chosen ones among them, from the cache or made now."""
    key = {"source": part.source.fingerprint, **made_by}
    kind = f"tokens/{_hash(json.dumps(key, sort_keys=True))}"
    found = _load(cache / kind)
    if np.isin(part.chosen, found[1][:, 0]).all():
        return found
    with ExitStack() as stack:
        with disk_errors(cache, "paths.cache"):
            (cache / kind).mkdir(parents=True, exist_ok=True)
            # Other processes that need these rows wait and then find them.
            stack.enter_context(FileLock(cache / kind / ".lock"))
        for left in (cache / kind).glob(".*/"):  # left by a killed process; nobody else holds the lock
            shutil.rmtree(left, ignore_errors=True)
        missing = np.setdiff1d(part.chosen, _load(cache / kind)[1][:, 0])
        if len(missing):
            rows = {"count": len(missing), "sha256": sha256(missing.astype("<i8").tobytes()).hexdigest()[:20]}
            build = partial(_build, part.source.rows.select(missing), missing, template, max_length)
            cached_folder(cache, kind, {**key, "rows": rows}, build)
            log.info("%s rows tokenised", f"{len(missing):,}")
    return _load(cache / kind)


def _load(folder: Path) -> Pieces:
    """Return the pieces in a folder; if two machines tokenised the same row, the first one is used.

    A damaged piece is deleted, so that its rows are made again.
    """
    tables, indexes, length = [], [np.empty((0, len(INDEX)), dtype=np.int64)], 0
    for piece in sorted(folder.glob("[!.]*/")):
        if remove_damaged(piece):
            continue
        index, table = np.load(piece / "index.npy"), Dataset.from_file(str(piece / "rows.arrow"))
        index[:, 1] += np.where(index[:, 1] >= 0, length, 0)
        tables.append(table)
        length += len(table)
        indexes.append(index)
    joined = np.concatenate(indexes)
    _, first = np.unique(joined[:, 0], return_index=True)
    return tables, joined[first]


def _build(rows: Dataset, numbers: np.ndarray, template: Template, max_length: int, folder: Path) -> None:
    """Write rows.arrow and index.npy of a piece."""
    encoder = Encoder(template)
    verified = set(np.linspace(0, len(rows) - 1, VERIFIED, dtype=int).tolist())
    lines, place = [], 0
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress("rows tokenised", len(rows)) as advance,
    ):
        for batch in encode_rows(rows.select_columns(["messages", "extras"]), template, encoder, max_length):
            stop = batch.start + len(batch.encoded)
            for number in verified.intersection(range(batch.start, stop)):
                row = number - batch.start
                if batch.rendered[row] is batch.clipped[row]:
                    verify(encoder, batch.rendered[row], batch.encoded[row], int(numbers[number]))
            table, index = label_rows(batch.encoded, max_length)
            index[:, 0] = numbers[batch.start : stop]
            index[index[:, 1] >= 0, 1] += place
            index[:, 5:] = [[bool(row.stand_ins), *(note in row.notes for note in NOTES)] for row in batch.rendered]
            lines.append(index)
            place += len(table)
            writer.write_batch(table)
            advance(len(batch.encoded))
    np.save(folder / "index.npy", np.concatenate(lines))


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Pack rows of at most `max_length` tokens by best fit, longest first (arXiv:2404.10830); no row is split.

    Returns:
        The packs with a third column, `seq_lengths`: the lengths of the rows in each pack. The collator turns them
        into position ids that restart with each row, by which attention keeps the rows separate.
    """
    from trl import pack_dataset  # takes seconds to import

    shown = is_progress_bar_enabled()
    disable_progress_bars()  # it takes seconds, and the log is for lines
    try:
        return pack_dataset(dataset, max_length, strategy="bfd", map_kwargs={"keep_in_memory": True})
    finally:
        if shown:
            enable_progress_bars()
