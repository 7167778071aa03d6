"""Tokens: the rows of a mix as token ids, with labels on the assistant's turns only."""

import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tometune.common.errors import UserError
from tometune.data.encoder import settled
from tometune.data.mix import Mix
from tometune.data.template import Template
from tometune.data.tokenised import Part, Tokenised, tokenised

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
