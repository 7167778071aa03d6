"""Tokens: the rows of a mix as token ids, with labels on the assistant's turns only."""

import json
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from tometune.caching import cached_folder
from tometune.config.errors import UserError
from tometune.data.encoder import Encoded, Encoder, settled
from tometune.data.mix import Mix
from tometune.data.template import Messages, Rendered, Template

log = logging.getLogger(__name__)

VERSION = 3
"""Raised when the same rows are tokenised to other ids or labels."""

IGNORE = -100
"""Label of a token that is not trained on, PyTorch's `ignore_index`."""

BATCH = 1_000
AHEAD = 2
"""Batches that wait for the encoder."""

TOLD = 50_000
"""Rows after which the log tells how far it is; a multiple of `BATCH`."""

CHECKED = 200
"""Rows of a mix whose labels are decoded and compared, each time tokens are made."""

SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})


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
    """Tokens lost to cutting."""

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

    left_out: tuple[int, ...] = ()
    """Numbers, in the mix, of the rows that are left out."""


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
    folder = cached_folder(
        cache, "tokens", _key(mix, tokenizer, max_length), lambda target: _build(mix, template, max_length, target)
    )
    counts = Counts(**json.loads((folder / "counts.json").read_text(encoding="utf-8")))
    if counts.without_labels == counts.rows:
        raise UserError(f"trainer.max_length={max_length}: no row has an answer left after cutting; raise it")
    if counts.without_labels:
        log.warning("%s rows have nothing to train on after cutting and are left out", f"{counts.without_labels:,}")
    left_out = json.loads((folder / "left_out.json").read_text(encoding="utf-8"))
    return Tokens(Dataset.from_file(str(folder / "rows.arrow")), counts, tuple(left_out))


def _key(mix: Mix, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return all that makes the tokens."""
    inputs = {name: facts["fingerprint"] for name, facts in mix.facts.items()}
    return {
        "mix": {"digest": mix.digest, "rows": len(mix.row_ids), "inputs": inputs},
        "tokenizer": _hash(settled(tokenizer.backend_tokenizer).to_str()),
        "special_tokens": tokenizer.special_tokens_map,  # templates write some of them by these names
        "chat_template": _hash(tokenizer.chat_template),  # with the pinned date in it
        "max_length": max_length,
        "mask": "assistant turns and the end of each",
        "tokens": VERSION,
    }


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:20]


def _build(mix: Mix, template: Template, max_length: int, folder: Path) -> None:
    """Write rows.arrow, counts.json and left_out.json."""
    left_out: list[int] = []
    totals = np.zeros(len(asdict(Counts())), dtype=np.int64)
    encoder = Encoder(template)
    checked = set(np.linspace(0, len(mix.dataset) - 1, CHECKED, dtype=int).tolist())
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for start, conversations, rendered, encoded in _encoded(mix, template, encoder):
            for number in checked.intersection(range(start, start + len(encoded))):
                row = number - start
                verify(encoder, conversations[row], rendered[row], encoded[row], mix.row_ids[number])
            batch, counts, without = _arrow(encoded, max_length)
            left_out += [start + row for row in without]
            totals += [*counts, sum(bool(row.stand_ins) for row in rendered)]
            writer.write_batch(batch)
            done = start + len(encoded)
            if done % TOLD == 0 or done == len(mix.dataset):
                log.info("%s of %s rows tokenised", f"{done:,}", f"{len(mix.dataset):,}")
    named = dict(zip(asdict(Counts()), totals.tolist(), strict=True))
    (folder / "counts.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "left_out.json").write_text(json.dumps(left_out), encoding="utf-8")


def _encoded(
    mix: Mix, template: Template, encoder: Encoder
) -> Iterator[tuple[int, list[Messages], list[Rendered], list[Encoded]]]:
    """Yield the mix in batches: number of the first row, conversations, their texts, their tokens.

    The encoder (Rust, every core) works on the next batches in a thread while Python renders and stores others.
    """
    waiting: deque[tuple[int, list[Messages], list[Rendered], Future[list[Any]]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for start in range(0, len(mix.dataset), BATCH):
            conversations = mix.dataset[start : start + BATCH]["messages"]
            rendered = template.render(conversations)
            waiting.append((start, conversations, rendered, thread.submit(encoder.encodings, rendered)))
            if len(waiting) > AHEAD:
                yield _finished(encoder, *waiting.popleft())
        while waiting:
            yield _finished(encoder, *waiting.popleft())


def _finished(
    encoder: Encoder, start: int, conversations: list[Messages], rendered: list[Rendered], future: Future[list[Any]]
) -> tuple[int, list[Messages], list[Rendered], list[Encoded]]:
    """Wait for the encodings of a batch and place the labels."""
    return start, conversations, rendered, encoder.placed(rendered, future.result())


def verify(encoder: Encoder, messages: Messages, row: Rendered, encoded: Encoded, row_id: str) -> None:
    """Check that the trained tokens decode to the assistant's texts, each with its end of turn and nothing else.

    Raises:
        RuntimeError: they do not.
    """
    ids, places = encoded
    wanted = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    if not len(wanted) == len(places) == len(row.spans):
        raise RuntimeError(f"row {row_id}: {len(places)} places are trained on, the assistant has {len(wanted)} turns")
    for text, (start, end), span in zip(wanted, places, row.spans, strict=True):
        decoded, shown = encoder.decode(ids[start:end]), row.spelt(*span)
        kept = encoder.round_trip(shown)
        # A tokenizer that normalises, or marks the starts of words, gives back another text; most give back the same.
        same = decoded == shown if kept == shown else decoded.strip() == kept.strip()
        if not (same and _is_answer(encoder.template, shown, text) and encoder.controls(ids[start:end]) <= 1):
            raise RuntimeError(f"row {row_id}: the labels decode to {decoded!r}, not to the assistant's {text!r}")


def _is_answer(template: Template, shown: str, text: str) -> bool:
    """Tell whether what is trained on is the text and, if the template ends answers, one token that ends it."""
    body = shown.strip()
    ending = body[len(text) :].strip()
    return body.startswith(text) and bool(template.special.fullmatch(ending) if template.ends else not ending)


def _arrow(encoded: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, list[int], list[int]]:
    """Return the batch with labels, its counts in the order of `Counts` (but for the last), and the rows left out."""
    # The first token is never predicted, so a label there trains nothing.
    trains = [any(end > 1 and max(start, 1) < max_length for start, end in places) for _, places in encoded]
    kept = [row for row, trained in zip(encoded, trains, strict=True) if trained]
    lengths = np.array([0, *(min(len(ids), max_length) for ids, _ in kept)], dtype=np.int32)
    offsets = np.cumsum(lengths, dtype=np.int32)
    tokens = np.fromiter(chain.from_iterable(ids[:max_length] for ids, _ in kept), dtype=np.int32, count=offsets[-1])
    labels = np.full(len(tokens), IGNORE, dtype=np.int32)
    for (_, places), first, stop in zip(kept, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for start, end in places:
            trained = slice(first + start, min(first + end, stop))
            labels[trained] = tokens[trained]
    cut = [len(ids) - max_length for ids, _ in encoded if len(ids) > max_length]
    columns = [pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)) for flat in (tokens, labels)]
    trained_tokens = int((labels != IGNORE).sum())
    counts = [len(encoded), len(tokens), trained_tokens, len(cut), sum(cut), len(encoded) - len(kept)]
    without = [number for number, trained in enumerate(trains) if not trained]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), counts, without
