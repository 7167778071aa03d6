"""A check of labels: what is trained on decodes to the assistant's texts, each with its end of turn."""

from itertools import chain

import numpy as np
import pyarrow as pa

from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Messages, Rendered, Template

IGNORE = -100
"""Label of a token that is not trained on, PyTorch's `ignore_index`."""

SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})

INDEX = ("row", "place", "tokens", "trained", "cut", "special")
"""Of a row: its number in the source; its place in `rows`, -1 where it has nothing to train on and is left out; its
tokens after cutting (0 if left out); those with a label; tokens cut off; whether its texts spell a special token."""


def labelled(rows: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Return the rows that train something, with labels, and the batch's lines of the index, rows not yet named."""
    index = np.zeros((len(rows), len(INDEX)), dtype=np.int64)
    # The first token is never predicted, so a label there trains nothing.
    trains = np.array(
        [any(end > 1 and max(start, 1) < max_length for start, end in places) for _, places in rows], dtype=bool
    )
    kept = [row for row, trained in zip(rows, trains, strict=True) if trained]
    lengths = np.array([0, *(min(len(ids), max_length) for ids, _ in kept)], dtype=np.int32)
    offsets = np.cumsum(lengths, dtype=np.int32)
    tokens = np.fromiter(chain.from_iterable(ids[:max_length] for ids, _ in kept), dtype=np.int32, count=offsets[-1])
    labels = np.full(len(tokens), IGNORE, dtype=np.int32)
    for (_, places), first, stop in zip(kept, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for start, end in places:
            trained = slice(first + start, min(first + end, stop))
            labels[trained] = tokens[trained]
    index[:, 1] = np.where(trains, np.cumsum(trains) - 1, -1)
    index[trains, 2] = lengths[1:]
    if kept:
        index[trains, 3] = np.add.reduceat(labels != IGNORE, offsets[:-1])
    index[:, 4] = [max(0, len(ids) - max_length) for ids, _ in rows]
    columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for flat in (tokens, labels)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), index


def verify(encoder: Encoder, messages: Messages, row: Rendered, encoded: Encoded, number: int) -> None:
    """Check that the trained tokens decode to the assistant's texts, each with its end of turn and nothing else.

    Raises:
        RuntimeError: they do not.
    """
    ids, places = encoded
    wanted = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    if not len(wanted) == len(places) == len(row.spans):
        raise RuntimeError(f"row {number}: {len(places)} places are trained on, the assistant has {len(wanted)} turns")
    for text, (start, end), span in zip(wanted, places, row.spans, strict=True):
        decoded, shown = encoder.decode(ids[start:end]), row.spelt(*span)
        kept = encoder.round_trip(shown)
        # A tokenizer that normalises, or marks the starts of words, gives back another text; most give back the same.
        same = decoded == shown if kept == shown else decoded.strip() == kept.strip()
        if not (same and _is_answer(encoder.template, shown, text) and encoder.controls(ids[start:end]) <= 1):
            raise RuntimeError(f"row {number}: the labels decode to {decoded!r}, not to the assistant's {text!r}")


def _is_answer(template: Template, shown: str, text: str) -> bool:
    """Tell whether what is trained on is the text and, if the template ends answers, one token that ends it."""
    body = shown.strip()
    ending = body[len(text) :].strip()
    return body.startswith(text) and bool(template.special.fullmatch(ending) if template.ends else not ending)
