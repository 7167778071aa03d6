"""Labels decode to the answers, for any text; wrong labels are found."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.tokenised import TOKENIZERS, both, mix_from, trained_texts
from tometune.data.encoder import Encoder, verify
from tometune.data.template import Template
from tometune.data.tokens import tokenise

WORDS = ["a", "_", ">", "b c", " ", "\n", "\n\n", "é", "e\u0301", "漢", "😀", "👩‍👩‍👧", "12"]
PARTS = st.sampled_from([*WORDS, "<|im_end|>", "<|eot_id|>"])
TEXTS = st.lists(PARTS | st.characters(exclude_categories=["Cs"]), max_size=8).map("".join)


def test_a_normalising_tokenizer_passes_the_check(tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    made = tokenise(mix_from([turns("q", "e\u0301 is one letter")]), tokenizer, 512, tmp_path)
    assert trained_texts(tokenizer, made.dataset[0], "<|im_end|>") == ["é is one letter<|im_end|>"]


@pytest.mark.parametrize("text", ["hello you", "_", ">", "<|im_end|>", "im_end"])
def test_wrong_labels_are_found(text: str) -> None:
    """Also where the answer is a part of the end of turn."""
    encoder = _encoder("chatml")
    messages = turns("hi", text, "hi", "again")
    row = encoder.template.render([messages])[0]
    ids, places = encoder.encode([row])[0]
    verify(encoder, row, (ids, places), 7)
    (a, b), (c, d) = places
    wrong = [[(a, b)], [(a - 1, b), (c, d)], [(a, b - 1), (c, d)], [(a, b + 1), (c, d)], [(c, d), (a, b)]]
    for each in wrong:
        with pytest.raises(RuntimeError, match="row 7"):
            verify(encoder, row, (ids, each), 7)
    with pytest.raises(RuntimeError, match="row 7"):
        verify(encoder, replace(row, answers=[text, "other"]), (ids, places), 7)
    (first, last), other = row.spans
    end = len("<|im_end|>")
    for tokens, characters in (((b - 1, b), (last - end, last)), ((a, b - 1), (first, last - end))):
        with pytest.raises(RuntimeError, match="the labels decode to"):
            verify(encoder, replace(row, spans=[characters, other]), (ids, [tokens, (c, d)]), 7)


@both
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=6), min_size=1, max_size=5), system=st.none() | TEXTS)
def test_decoded_labels_are_the_answers(name: str, rows: list[list[str]], system: str | None) -> None:
    end, encoder = TOKENIZERS[name][1], _encoder(name)
    conversations = [turns(*contents, system=system) for contents in rows]
    rendered = encoder.template.render(conversations)
    for messages, row, (ids, places) in zip(conversations, rendered, encoder.encode(rendered), strict=True):
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        shown = [answer.strip() for answer in answers] if name == "llama3" else answers
        assert [encoder.decode(ids[a:b]) for a, b in places] == [answer + end for answer in shown]
        verify(encoder, row, (ids, places), "row")


@cache
def _encoder(name: str) -> Encoder:
    return Encoder(Template(TOKENIZERS[name][0]()))
