"""Encoding: rendered conversations as token ids and labels, of which only the assistant's texts are trained on.

The whole text is encoded at once, as in generation. If that would merge a header with the text after it into one token,
or make a control token of text that merely spells one, the row is encoded in pieces. Labels are verified by decoding.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tokenizers import Tokenizer

from tometune.data.conversations import full_messages
from tometune.data.template import Messages, Rendered, Template, Tools

Encoded = tuple[list[int], list[tuple[int, int]]]  # token ids, and the [start, end) of the tokens that are trained on

IGNORE = -100  # label of a token that is not trained on, PyTorch's `ignore_index`
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})  # of labelled rows

# Rows encoded together, and their characters: an encoding takes some hundred bytes per token.
BATCH, CHARACTERS = 1_000, 2_000_000
AHEAD = 2  # batches that wait for the encoder
HELD = 64  # rows whose encodings `Encoder.encode` holds at once


def without_truncation(backend: Any) -> Any:
    """Switch off truncation and padding, which tokenizer.json or an earlier call may have left on."""
    backend.no_truncation()
    backend.no_padding()
    return backend


class Encoder:
    """A tokenizer's backend, which makes control tokens, and a copy, which encodes their spelling as plain text.

    With one backend, a switch would also affect the batch that another thread is encoding.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self._backend = without_truncation(template.tokenizer.backend_tokenizer)
        self._backend.encode_special_tokens = False
        self.controls = {number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def _plain(self) -> Tokenizer:
        """The copy, made when first needed: writing out a vocabulary of 128,000 takes 0.2 s, and few texts need it."""
        return _plain_copy(self._backend.to_str())

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """Return token ids and trained tokens, not truncated."""
        batches = (rendered[start : start + HELD] for start in range(0, len(rendered), HELD))
        return [row for batch in batches for row in self.locate(batch, self.encodings(batch))]

    def encodings(self, rendered: list[Rendered]) -> list[Any]:
        """Encode the texts on every core."""
        return list(self._backend.encode_batch([row.text for row in rendered], add_special_tokens=False))

    def locate(self, rendered: list[Rendered], encodings: list[Any]) -> list[Encoded]:
        """Return the token ids of encodings, and the tokens that are trained on."""
        result = []
        for row, encoding in zip(rendered, encodings, strict=True):
            places = None if row.stand_ins else _trained_tokens(encoding, row)
            result.append(self._in_pieces(row) if places is None else (encoding.ids, places))
        return result

    def _in_pieces(self, row: Rendered) -> Encoded:
        """Encode control tokens and the texts between them one by one."""
        ids: list[int] = []
        controls = [match.span() for match in self.template.special.finditer(row.text)]
        edges = sorted({0, len(row.text), *(edge for span in [*row.spans, *controls] for edge in span)})
        starts = {start for start, _ in controls}
        tokens_at = {0: 0}
        for start, end in pairwise(edges):
            backend = self._backend if start in starts else self._plain
            ids += backend.encode(row.original(start, end), add_special_tokens=False).ids
            tokens_at[end] = len(ids)
        return ids, [(tokens_at[start], tokens_at[end]) for start, end in row.spans]

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a message's text, which has no control tokens."""
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of messages' texts, encoded on every core."""
        return [encoding.ids for encoding in self._plain.encode_batch(texts, add_special_tokens=False)]

    def round_trip(self, text: str) -> str:
        return self.decode(self.encode_text(text))


@lru_cache(1)
def _plain_copy(backend: str) -> Tokenizer:
    """Return a copy that encodes control tokens as plain text; parsing a large vocabulary takes seconds."""
    copy: Tokenizer = without_truncation(Tokenizer.from_str(backend))
    copy.encode_special_tokens = True
    return copy


def _trained_tokens(encoding: Any, row: Rendered) -> list[tuple[int, int]] | None:
    """Return the tokens of the character spans; None if a span does not begin and end at a token border."""
    places = []
    for start, end in row.spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None or encoding.token_to_chars(first)[0] != start:
            return None
        while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == encoding.token_to_chars(last):
            last += 1  # one character made of several byte tokens
        stop = encoding.token_to_chars(last)[1]
        if stop < end or row.text[end:stop].strip():  # some end-of-turn tokens include the white space after them
            return None
        places.append((first, last + 1))
    return places


def encode_rows(rows: Dataset, encoder: Encoder, max_length: int) -> Iterator[tuple[list[Rendered], list[Encoded]]]:
    """Render and encode rows in batches; memory stays bounded however long the rows are.

    The encoder (Rust, every core) works on the next batches in a thread while Python renders and stores others.
    """
    waiting: deque[tuple[list[Rendered], Future[list[Any]]]] = deque()
    template = encoder.template
    longest = max_length * max(map(len, template.tokenizer.get_vocab()))  # what follows is hardly ever reached

    def finish() -> tuple[list[Rendered], list[Encoded]]:
        rendered, encodings = waiting.popleft()
        encoded = encoder.locate(rendered, encodings.result())
        for number, row in enumerate(rendered):
            if row.whole and len(encoded[number][0]) <= max_length:  # one <unk> may cover any number of characters
                (encoded[number],) = encoder.encode([row.whole])
        return rendered, encoded

    with ThreadPoolExecutor(1) as thread:
        for batch in _batches(rows):
            conversations, tools = zip(*batch, strict=True)
            rendered = [_clip(row, longest) for row in template.render(conversations, tools)]
            waiting.append((rendered, thread.submit(encoder.encodings, rendered)))
            if len(waiting) > AHEAD:
                yield finish()
        while waiting:
            yield finish()


def _batches(rows: Dataset) -> Iterator[list[tuple[Messages, Tools]]]:
    """Yield conversations and their tools: at most `BATCH` rows and about `CHARACTERS`."""
    for start in range(0, len(rows), BATCH):
        stored = rows[start : start + BATCH]
        size, batch = 0, list[tuple[Messages, Tools]]()
        for messages, extras in zip(stored["messages"], stored["extras"], strict=True):
            batch.append(full_messages(messages, extras))
            size += sum(len(message["content"]) for message in messages) + len(extras or "")
            if size > CHARACTERS:
                yield batch
                size, batch = 0, []
        if batch:
            yield batch


def _clip(row: Rendered, longest: int) -> Rendered:
    if len(row.text) <= longest:
        return row
    spans = [(start, min(end, longest)) for start, end in row.spans if start < longest]
    return replace(row, text=row.text[:longest], spans=spans, whole=row)


def label_rows(rows: list[Encoded], max_length: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Truncate rows and label their trained tokens; a row without a label is left out.

    Returns:
        The rows, of `SCHEMA`; and of all rows, shape (rows, 3), the tokens after truncation (0 without labels), the
        tokens with a label, and the tokens cut off.
    """
    sizes = np.zeros((len(rows), 3), dtype=np.int64)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMA.names}
    for size, (ids, places) in zip(sizes, rows, strict=True):
        size[2] = max(0, len(ids) - max_length)
        # The first token is never predicted, so a label there trains nothing.
        if any(end > 1 and max(start, 1) < max_length for start, end in places):
            tokens = np.fromiter(ids[:max_length], dtype=np.int32)
            labels = np.full(len(tokens), IGNORE, dtype=np.int32)
            for start, end in places:
                labels[start:end] = tokens[start:end]
            size[:2] = len(tokens), np.count_nonzero(labels != IGNORE)
            kept["input_ids"].append(tokens)
            kept["labels"].append(labels)
    return pa.RecordBatch.from_pydict(kept, schema=SCHEMA), sizes


def verify(encoder: Encoder, row: Rendered, encoded: Encoded, number: int) -> None:
    """Check that the trained tokens decode to the assistant's texts, each with its end of turn and nothing else.

    Raises:
        RuntimeError: they do not.
    """
    ids, places = encoded
    if not len(places) == len(row.spans) == len(row.answers):
        raise RuntimeError(f"row {number}: {len(places)} spans are trained on for {len(row.answers)} answers")
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
