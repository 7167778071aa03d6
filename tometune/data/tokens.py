"""Tokens of a mix, cached in blocks of its rows.

A block is a folder with rows.arrow, the rows that have labels, and sizes.npy with one line per row. A larger mix of the
same seed begins with the rows of a smaller one, so it finds the blocks of that one and makes only those that follow.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.data.encoder import SCHEMA, Encoder, encode_rows, label_rows, verify, without_truncation
from tometune.data.mix import Mix, Part
from tometune.data.template import NOTES, Template

log = logging.getLogger(__name__)

VERSION = 6  # raised when the same rows get other ids or labels, or are stored in another way

BLOCK = 10_000  # rows of a block
VERIFIED = 200  # rows of a block that are decoded and compared with their answers


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
        least = f"the chat template alone takes {overhead} tokens; raise it above that"
        raise UserError(f"trainer.max_length={max_length}: {least}")
    if not template.end:
        log.warning("the chat template ends answers without a special token, so the model does not learn to stop")
    made_by = tokenizer_key(tokenizer) | {"max_length": max_length, "tokens": VERSION}
    made_by["mask"] = "assistant turns and the end of each"
    blocks = [block for part in mix.parts.values() for block in _blocks(part, made_by, template, max_length, cache)]
    sizes = np.concatenate([block_sizes for _, block_sizes in blocks])
    lengths, trained, cut, special, *notes = sizes.T
    counts = Counts(
        rows=len(sizes),
        tokens=int(lengths.sum()),
        trainable_tokens=int(trained.sum()),
        truncated=int((cut > 0).sum()),
        tokens_cut=int(cut.sum()),
        without_labels=int((trained == 0).sum()),
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
    return Tokens(concatenate_datasets([rows for rows, _ in blocks]), counts, lengths)


def tokenizer_key(tokenizer: Any) -> dict[str, Any]:
    """Return what a tokenizer and its chat template make tokens from, as plain values for the key of a cache."""
    return {
        "tokenizer": _hash(without_truncation(tokenizer.backend_tokenizer).to_str()),
        "special_tokens": tokenizer.special_tokens_map,  # templates write some of them by these names
        "chat_template": _hash(tokenizer.chat_template),  # includes the pinned date
    }


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:20]


def _blocks(
    part: Part, made_by: dict[str, Any], template: Template, max_length: int, cache: Path
) -> Iterator[tuple[Dataset, np.ndarray]]:
    """Yield the rows with labels and the sizes of all rows of each block of a part, from the cache or made now."""
    for start in range(0, len(part.chosen), BLOCK):
        numbers = part.chosen[start : start + BLOCK]
        rows = {"count": len(numbers), "sha256": sha256(numbers.astype("<i8").tobytes()).hexdigest()[:20]}
        key = {"source": part.source.fingerprint, **made_by, "rows": rows}
        build = partial(_build, part.source.rows.select(numbers), numbers, template, max_length)
        folder = cached_folder(cache, "tokens", key, build, alone=True)
        yield Dataset.from_file(str(folder / "rows.arrow")), np.load(folder / "sizes.npy")


def _build(rows: Dataset, numbers: np.ndarray, template: Template, max_length: int, folder: Path) -> None:
    encoder = Encoder(template)
    verified = set(np.linspace(0, len(rows) - 1, VERIFIED, dtype=int).tolist())
    sizes: list[np.ndarray] = []
    start = 0
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
        progress("rows tokenised", len(rows)) as advance,
    ):
        columns = rows.select_columns(["messages", "extras"])
        for rendered, encoded in encode_rows(columns, encoder, max_length):
            for number, (row, ids) in enumerate(zip(rendered, encoded, strict=True), start):
                if number in verified and row.whole is None:
                    verify(encoder, row, ids, int(numbers[number]))
            table, counted = label_rows(encoded, max_length)
            flags = [[bool(row.stand_ins), *(note in row.notes for note in NOTES)] for row in rendered]
            sizes.append(np.column_stack([counted, np.array(flags, dtype=np.int64)]))
            writer.write_batch(table)
            advance(len(encoded))
            start += len(encoded)
    np.save(folder / "sizes.npy", np.concatenate(sizes))
    log.info("%s rows tokenised", f"{len(rows):,}")


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
