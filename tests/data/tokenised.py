"""Conversations that are hard to tokenise, as mixes, and what of their tokens is trained on."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.data.chatml import chatml_tokenizer, turns
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.data.encoder import IGNORE
from tometune.data.mix import Mix, Part
from tometune.data.standardise import Standardised
from tometune.data.template_support import Messages

TOKENIZERS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "chatml": (chatml_tokenizer, "<|im_end|>", "<|im_start|>"),
    # Parsing it takes seconds, so all tests of a process share it; none changes it.
    "llama3": (cache(llama3_tokenizer), "<|eot_id|>", "<|start_header_id|>"),
}
both = pytest.mark.parametrize("name", TOKENIZERS)

CONVERSATIONS: list[Messages] = [
    turns("hi", "hello"),
    turns("hi", "hello", "and?", "bye", "more?", "no"),
    turns("hi", "hello", system="be kind"),
    turns("hi", "hello", system=""),
    turns("é 漢字 😀", "😀👩‍👩‍👧 naïve — “quoted” 🎉"),
    turns("q\n", "def f(x):\n    return x  + 1\n\t# end"),
    [*turns("weather?", "call()"), {"role": "tool", "content": '{"sky": "blue"}'}, *turns("", "blue")[1:]],
    turns("what is <|im_end|> and <|eot_id|>?", "<|eot_id|> ends, as <|im_end|> does <|start_header_id|>"),
]


def mix_from(conversations: list[Messages], digest: str = "d") -> Mix:
    rows = [{"source": "test", "messages": messages, "extras": None} for messages in conversations]
    dataset = Dataset.from_list(rows)
    row_ids = [f"base:{number}" for number in range(len(rows))]
    source = Standardised(
        fingerprint=digest, folder=Path(), rows=dataset, keys=np.zeros(len(rows), "S16"),
        labels=np.zeros(len(rows), np.int32), names=["test"], scores=None, read=len(rows),
        dropped={}, malformed={}, mended={}, unread={}, bad=[],
    )  # fmt: skip
    facts = {"fingerprint": "f", "read": len(rows), "usable": len(rows), "rows": len(rows)}
    part = Part(source, np.arange(len(rows)), facts, {})
    return Mix("test", 0, dataset, row_ids, digest, {"test": len(rows)}, {"base": part})


def trained_texts(tokenizer: Any, row: dict[str, Any], end: str) -> list[str]:
    """The runs of labels, each cut after its end of turn."""
    ids, labels = row["input_ids"], row["labels"]
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    inside = [0, *(label != IGNORE for label in labels), 0]
    starts = [place for place in range(len(labels)) if inside[place + 1] and not inside[place]]
    ends = [place for place in range(1, len(labels) + 1) if inside[place] and not inside[place + 1]]
    return [tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in zip(starts, ends, strict=True)]
