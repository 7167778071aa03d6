"""Labels: only the assistant's texts and the token that ends each are trained on, and that is verified by decoding."""

from itertools import chain

import numpy as np
import pyarrow as pa

from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Rendered

IGNORE = -100  # label of a token that is not trained on, PyTorch's `ignore_index`

SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})


def label_rows(rows: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Truncate rows and label their trained tokens; a row without a label is left out.

    Returns:
        The rows, of `SCHEMA`; and of all rows, shape (rows, 3), the tokens after truncation (0 without labels), the
        tokens with a label, and the tokens cut off.
    """
    sizes = np.zeros((len(rows), 3), dtype=np.int64)
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
    sizes[trains, 0] = lengths[1:]
    if kept:
        sizes[trains, 1] = np.add.reduceat(labels != IGNORE, offsets[:-1])
    sizes[:, 2] = [max(0, len(ids) - max_length) for ids, _ in rows]
    columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for flat in (tokens, labels)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), sizes


def verify(encoder: Encoder, row: Rendered, encoded: Encoded, number: int) -> None:
    """Check that the trained tokens decode to the assistant's texts, each with its end of turn and nothing else.

    Raises:
        RuntimeError: they do not.
    """
    ids, places = encoded
    if not len(places) == len(row.spans) == len(row.answers):
        raise RuntimeError(
            f"row {number}: {len(places)} spans are trained on, but there are {len(row.answers)} answers"
        )
    template = encoder.template
    for answer, (start, end), span in zip(row.answers, places, row.spans, strict=True):
        decoded, shown = encoder.decode(ids[start:end]), row.original(*span)
        kept = encoder.round_trip(shown)
        # A tokenizer that normalises text, or marks the starts of words, decodes to another text; most do not.
        correct = decoded == shown if kept == shown else decoded.strip() == kept.strip()
        if answer is not None:
            body, text = shown.strip(), answer.strip()
            ending = body[len(text) :].strip()
            ends = template.special.fullmatch(ending) is not None or not (ending or template.end)
            controls = sum(number in encoder.controls for number in ids[start:end])
            correct = correct and body.startswith(text) and ends and controls <= 1
        if not correct:
            raise RuntimeError(f"row {number}: the labels decode to {decoded!r}, not to the answer {answer or shown!r}")
