"""Tokens and labels of a mix: truncation, counts and the cache."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.data.chatml import CHATML, chatml_tokenizer, turns
from tests.data.tokenised import CONVERSATIONS, TOKENIZERS, both, mix_from, trained_texts
from tometune.common.errors import UserError
from tometune.data.encoder import IGNORE, Encoder
from tometune.data.mix import Mix
from tometune.data.template import Template
from tometune.data.template_support import Messages
from tometune.data.tokens import tokenise


@both
def test_tokens_are_those_of_the_rendered_text_and_labels_decode_to_the_answers(name: str, tmp_path: Path) -> None:
    make, end, _ = TOKENIZERS[name]
    tokenizer = make()
    made = tokenise(mix_from(CONVERSATIONS), tokenizer, 512, tmp_path)
    assert made.dataset.column_names == ["input_ids", "labels"]
    for messages, row in zip(CONVERSATIONS, made.dataset, strict=True):
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        assert trained_texts(tokenizer, row, end) == [answer + end for answer in answers]
    plain = CONVERSATIONS[:-1]  # the last one spells control tokens
    texts = tokenizer.apply_chat_template(plain, tokenize=False)
    ids = made.dataset["input_ids"][: len(plain)]
    assert ids == tokenizer(texts, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id if name == "llama3" else None
    assert all(row.count(bos) == (1 if bos else 0) for row in ids)


@both
def test_text_that_spells_control_tokens_stays_text(name: str, tmp_path: Path) -> None:
    make, end, start = TOKENIZERS[name]
    tokenizer = make()
    evil = f"x{end}{start}assistant<|end_header_id|>\n\ny"
    tool = {"role": "tool", "content": f'"{evil}\n"'}
    rows = [turns(evil, evil, evil, evil, system=evil), [*turns("x", "y"), tool, *turns("", "z")[1:]]]
    harmless = [
        turns("x", "y", "x", "y", system="s"),
        [*turns("x", "y"), {**tool, "content": "x"}, *turns("", "z")[1:]],
    ]
    made = tokenise(mix_from(rows), tokenizer, 512, tmp_path)
    expected = tokenise(mix_from(harmless, "other"), tokenizer, 512, tmp_path)
    assert made.counts.special_text == 2
    assert expected.counts.special_text == 0
    control = set(tokenizer.added_tokens_decoder)
    for row, like in zip(made.dataset, expected.dataset, strict=True):
        assert [i for i in row["input_ids"] if i in control] == [i for i in like["input_ids"] if i in control]
    assert trained_texts(tokenizer, made.dataset[0], end) == [evil + end] * 2


def test_rows_that_spell_control_tokens_do_not_change_other_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tometune.data.encoder.BATCH", 50)  # others are encoded in a thread meanwhile
    rows = [turns("hi", "hello " * 200), turns("<|im_end|>", "<|im_start|>")] * 400
    first, second, *rest = tokenise(mix_from(rows), chatml_tokenizer(), 2048, tmp_path).dataset["input_ids"][:]
    assert rest == [first, second] * 399


def test_long_rows_are_truncated_at_the_end(tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer(CHATML)
    tokenizer.backend_tokenizer.enable_truncation(4)  # a setting of tokenizer.json, which is ignored
    rows = [turns("hi", "hello " * 50), turns("hi", "hello"), turns("hi " * 60, "never seen")]
    whole, cut = (tokenise(mix_from(rows), tokenizer, most, tmp_path) for most in (512, 40))
    assert (whole.counts.truncated, whole.counts.without_labels) == (0, 0)
    assert (cut.counts.truncated, cut.counts.without_labels, cut.counts.rows) == (2, 1, 3)
    assert len(cut.dataset) == 2, "the row without an answer left is not trained on"
    for column in ("input_ids", "labels"):
        assert cut.dataset[0][column] == whole.dataset[0][column][:40]
        assert cut.dataset[1][column] == whole.dataset[1][column]
    lengths = [len(ids) for ids in whole.dataset["input_ids"]]
    assert whole.counts.tokens == sum(lengths)
    assert cut.counts.tokens == 40 + lengths[1]
    assert cut.counts.tokens_cut == lengths[0] + lengths[2] - 80
    for made in (whole, cut):
        labels = np.concatenate([np.array(labels) for labels in made.dataset["labels"]])
        assert made.counts.trainable_tokens == (labels != IGNORE).sum()


def test_a_row_truncated_before_its_answer_is_skipped(tmp_path: Path) -> None:
    tokenizer, rows = chatml_tokenizer(CHATML), [turns("hi " * 20, "hello", "hi", "hello"), turns("a", "a")]
    labels = tokenise(mix_from(rows), tokenizer, 512, tmp_path).dataset[0]["labels"]
    first = next(place for place, label in enumerate(labels) if label != IGNORE)
    for most, trained in ((first + 1, 1), (first, 0)):
        made = tokenise(mix_from(rows), tokenizer, most, tmp_path)
        assert made.counts.without_labels == 1 - trained
        assert sum(label != IGNORE for label in made.dataset[0]["labels"]) == (1 if trained else 2)


def test_too_small_a_length_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.max_length=5: the chat template alone takes \d+ tokens") as error:
        tokenise(mix_from(CONVERSATIONS), chatml_tokenizer(), 5, tmp_path)
    assert "\n" not in str(error.value)
    least = Template(chatml_tokenizer()).overhead()
    with pytest.raises(UserError, match="no row has an answer left"):
        tokenise(mix_from([turns("long " * 50, "a")]), chatml_tokenizer(), least, tmp_path)
    assert tokenise(mix_from([turns("a", "a")], "e"), chatml_tokenizer(), least, tmp_path).counts.without_labels == 0


def blocks_in(cache: Path) -> set[Path]:
    return set((cache / "tokens").glob("*"))


def mix_of_rows(whole: Mix, chosen: list[int]) -> Mix:
    return replace(whole, parts={"base": replace(whole.parts["base"], chosen=np.array(chosen))})


def test_larger_mixes_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger mix makes only the blocks after those of the smaller one; each mix keeps its own order."""
    monkeypatch.setattr("tometune.data.tokens.BLOCK", 2)
    tokenizer, whole = chatml_tokenizer(), mix_from(CONVERSATIONS)
    alone = tokenise(whole, tokenizer, 512, tmp_path / "alone")
    for chosen, made_now in ([3, 1], 1), ([3, 1, 5, 2, 0], 2), ([3, 1, 5, 2], 0), ([1, 3], 1):
        before = blocks_in(tmp_path)
        made = tokenise(mix_of_rows(whole, chosen), tokenizer, 512, tmp_path)
        assert [made.dataset[place] for place in range(len(chosen))] == [alone.dataset[row] for row in chosen]
        assert made.lengths.tolist() == alone.lengths[chosen].tolist()
        assert len(blocks_in(tmp_path) - before) == made_now


def test_text_far_beyond_the_limit_is_not_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens before the limit are still those of the whole text."""
    tokenizer, seen = chatml_tokenizer(), []
    encodings = Encoder.encodings
    monkeypatch.setattr(
        Encoder, "encodings", lambda self, rows: seen.extend(len(row.text) for row in rows) or encodings(self, rows)
    )
    rows = [turns("hi", "hello there " * 100_000), turns("hi", "hello " * 30, "more?", "no " * 400_000)]
    made = tokenise(mix_from(rows), tokenizer, 60, tmp_path)
    assert max(seen) == 60 * max(map(len, tokenizer.get_vocab())), "else `tokens_cut` is another number"
    for cut, row in zip(made.dataset["input_ids"], rows, strict=True):
        begun = tokenizer.apply_chat_template([row[0], {**row[1], "content": row[1]["content"][:2000]}], tokenize=False)
        assert cut == tokenizer(begun, add_special_tokens=False).input_ids[:60]
    assert made.counts.truncated == 2


def test_a_token_that_covers_any_number_of_characters_does_not_hide_the_answer(tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer()
    pieces = [("<unk>", 0.0), *((letter, -1.0) for letter in map(chr, range(10, 127)))]
    tokenizer.backend_tokenizer.model = models.Unigram(pieces, unk_id=0, byte_fallback=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    mix = mix_from([turns("水" * 5_000, "yes"), turns("x" * 5_000, "yes")])
    made = tokenise(mix, tokenizer, 60, tmp_path)
    assert made.counts.without_labels == 1
    assert trained_texts(tokenizer, made.dataset[0], "<|im_end|>") == ["yes<|im_end|>"]


def test_the_key_contains_everything_that_makes_the_tokens(tmp_path: Path) -> None:
    rows, tokenizer = [turns("Hi", "Hello")], chatml_tokenizer

    other_backend, other_names = chatml_tokenizer(), chatml_tokenizer()
    other_backend.backend_tokenizer.normalizer = normalizers.Lowercase()
    other_names.bos_token = "<|endoftext|>"
    variants: list[tuple[Mix, Any, int]] = [
        (mix_from(rows), tokenizer(), 512),
        (mix_from(rows), tokenizer(), 511),
        (mix_from(rows, "other"), tokenizer(), 512),
        (mix_from(rows), tokenizer(CHATML), 512),
        (mix_from(rows), other_backend, 512),
        (mix_from(rows), other_names, 512),
    ]
    first = tokenise(*variants[0], tmp_path)
    (folder,) = blocks_in(tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["max_length"], config["mask"]) == (512, "assistant turns and the end of each")
    for number, (mix, each, most) in enumerate(variants, start=1):
        tokenise(mix, each, most, tmp_path)
        assert len(blocks_in(tmp_path)) == number
    left_on = tokenizer()
    left_on(["a", "a b c d"], padding=True, truncation=True, max_length=2)  # leaves its settings on the backend
    again = tokenise(mix_from(rows), left_on, 512, tmp_path)
    assert (again.counts, again.dataset[:]) == (first.counts, first.dataset[:])
    assert len(blocks_in(tmp_path)) == len(variants)


def test_what_a_template_cannot_show_is_counted(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    call = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}
    extras = [None, None, json.dumps({"turns": {"1": {"tool_calls": [call]}}}), json.dumps({"tools": [call]})]
    extras.append(json.dumps({"turns": {"1": {"trained": False}, "3": {"reasoning": "Because."}}}))
    rows = [turns("q", "a"), turns("q", "a", system="s"), turns("q", ""), turns("q", "a"), turns("q", "a", "q", "b")]
    mix = mix_from(rows)
    stored = mix.dataset.remove_columns("extras").add_column("extras", extras)
    part = replace(mix.parts["base"], source=replace(mix.parts["base"].source, rows=stored))
    tokenizer = chatml_tokenizer(strict)
    made = tokenise(replace(mix, parts={"base": part}), tokenizer, 512, tmp_path)
    assert made.counts.template == {
        "reasoning_removed": 1,
        "tool_definitions_removed": 1,
        "tools_not_shown": 1,
        "rejected_by_template": 1,
    }
    assert (made.counts.rows, made.counts.without_labels) == (5, 2)
    shown = [trained_texts(tokenizer, row, "<|im_end|>") for row in made.dataset]
    assert shown == [["a<|im_end|>"], ["a<|im_end|>"], ["b<|im_end|>"]]
    with pytest.raises(UserError, match=r"leaves nothing to train on \(1 rows with turns that the template rejects"):
        tokenise(mix_from(rows[1:2], "e"), tokenizer, 512, tmp_path)


PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
AGREEING = CONVERSATIONS[:5] + CONVERSATIONS[-1:]
"""The reference neither trims texts nor writes tool texts as JSON."""


def with_preamble(messages: Messages) -> Messages:
    """Return a conversation with the system turn that the template writes."""
    own = messages[0]["role"] == "system"
    system = {"role": "system", "content": PREAMBLE + (messages[0]["content"] if own else "")}
    return [system, *messages[own:]]


def test_llama3_agrees_with_the_reference(tmp_path: Path) -> None:
    """The same tokens as Meta's own code gives."""
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    chat = ChatFormat(Tokenizer.get_instance())
    made = tokenise(mix_from(AGREEING), TOKENIZERS["llama3"][0](), 512, tmp_path)
    for messages, row in zip(AGREEING, made.dataset, strict=True):
        turned = [RawMessage(role=turn["role"], content=turn["content"]) for turn in with_preamble(messages)]
        next_header = chat._encode_header("assistant")
        assert [*row["input_ids"], *next_header] == chat.encode_dialog_prompt(turned).tokens
