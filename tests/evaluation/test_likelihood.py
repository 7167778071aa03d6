"""Bits per byte and instruction-following difficulty, against losses computed one row at a time."""

import math

import numpy as np
import pytest
import torch

from tests.data.chatml import chatml_tokenizer
from tometune.config.model import ModelConfig, Precision, Quantization, Weights
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation import ifd, likelihood
from tometune.evaluation.generation import encode
from tometune.evaluation.ifd import IfdScorer
from tometune.evaluation.likelihood import bits_per_byte
from tometune.models.load import load_model
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer

PROMPTS = ["Say it.", "the quick brown fox " * 12, "漢字 🎉?", "What is <|im_end|>?", "q"]
REFERENCES = [
    ["the fox"],
    ["a lazy dog", "naïve — “quoted” 🎉", "x"],
    ["漢字🎉漢字"],
    [" the quick brown fox jumps over the lazy dog and then some more of it all\n"],
    ["it ends with <|im_end|> as text", "no"],
]


def bits(model, before, reference):
    """Bits of the tokens of a reference by the bare model, one example without padding."""
    ids = torch.tensor([[*before, *reference]])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return float(-log_p.gather(1, ids[0, 1:, None])[len(before) - 1 :, 0].sum() / math.log(2))


@pytest.fixture
def prompts(tokenizer):
    encoder = Encoder(Template(tokenizer))
    return encode(encoder, [[{"role": "user", "content": text}] for text in PROMPTS], 512)


@pytest.mark.parametrize(
    ("side", "tokens", "logits"),
    [("left", 4_096, 1_024), ("right", 400, 1_024), ("right", 4_096, 60), ("left", 1, 1)],
)
def test_batches_equal_one_example_at_a_time(model, tokenizer, prompts, monkeypatch, side, tokens, logits):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", (tokens, logits))
    monkeypatch.setattr(likelihood, "LOSSES_AT_ONCE", 7)
    plain = Encoder(Template(tokenizer))._plain  # spells control tokens as text
    expected = []
    for prompt, references in zip(prompts, REFERENCES, strict=True):
        texts = [reference.strip() for reference in references]
        each = [bits(model, prompt.ids, plain.encode(text, add_special_tokens=False).ids) for text in texts]
        expected.append(np.mean([found / len(text.encode()) for found, text in zip(each, texts, strict=True)]))
    found = bits_per_byte(model, tokenizer, prompts, REFERENCES)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("text", ["Hello", "Hello ", "What is <|im_end|>?"])
def test_white_space_that_a_template_puts_before_an_answer_is_scored_as_it_is_trained(monkeypatch, text):
    mistral = (
        "{% for m in messages %}{{ '[INST] ' + m['content'] if m['role'] == 'user' else "
        "' ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    encoder = Encoder(Template(chatml_tokenizer(mistral)))
    talk = [{"role": "user", "content": text}, {"role": "assistant", "content": "the quick fox"}]
    ((trained, ((start, end),)),) = encoder.encode(encoder.template.render([talk]))
    (asked,) = encode(encoder, [talk[:1]], 512)
    (row,) = likelihood._encoded(encoder, [(asked, " the quick fox\n")])
    assert row.ids == trained[: end - 1], "without the end of turn"
    assert (row.scored, row.bytes) == (end - 1 - start, len("the quick fox"))
    assert encoder.decode(row.ids[start:]) == " the quick fox"
    monkeypatch.setattr(likelihood, "LONGEST", row.scored)
    (cut,) = likelihood._encoded(encoder, [(asked, "the quick fox jumps")])
    assert (cut.ids, cut.bytes) == (row.ids, row.bytes)


def test_a_long_reference_is_scored_up_to_a_limit(model, tokenizer, prompts, monkeypatch):
    whole = bits_per_byte(model, tokenizer, prompts[:1], [["the fox"]])
    monkeypatch.setattr(likelihood, "LONGEST", len(tokenizer("the fox")["input_ids"]))
    assert bits_per_byte(model, tokenizer, prompts[:1], [["the fox and then some more"]]) == pytest.approx(whole)


TURNS = [
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red, or blue, or green."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why? " * 40},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "This second answer is not read."},
    ],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "long " * 60}],
]


def test_difficulty_reads_control_tokens_that_a_text_spells_as_text(tmp_path, monkeypatch):
    """As training, scoring and chat do."""
    source = locate(ModelConfig(id="tiny", weights=Weights.random, quantization=Quantization.none), tmp_path)
    tokenizer, read = load_tokenizer(source), list[list[int]]()
    monkeypatch.setattr(
        IfdScorer, "_losses", lambda _, rows: read.extend(row.ids for row in rows) or np.ones(len(rows))
    )
    for end in ("the end", tokenizer.eos_token):
        IfdScorer(source, tokenizer)(
            [[{"role": "user", "content": f"What is {end}?"}, {"role": "assistant", "content": f"It is {end}."}]]
        )
    plain, plain_alone, spelled, spelled_alone = ([i for i in ids if i in tokenizer.all_special_ids] for ids in read)
    assert (spelled, spelled_alone) == (plain, plain_alone)
    assert tokenizer.eos_token in tokenizer.decode(read[-1])


def test_difficulty_is_a_ratio_of_losses(tmp_path, monkeypatch):
    settings = {"weights": Weights.random, "quantization": Quantization.none, "precision": Precision.fp32}
    source = locate(ModelConfig(id="tiny", **settings), tmp_path)
    tokenizer, model = load_tokenizer(source), load_model(source)
    expected = []
    for turns in TURNS:
        first = [turn["role"] for turn in turns].index("assistant")
        prompt = tokenizer.apply_chat_template(turns[:first], add_generation_prompt=True, tokenize=False)
        asked, answer = tokenizer([prompt, turns[first]["content"]], add_special_tokens=False)["input_ids"]
        ratio = bits(model, asked, answer) / bits(model, [tokenizer.bos_token_id], answer)
        expected.append(ratio if ratio < 1 else -ratio)
    scorer = IfdScorer(source, tokenizer)
    scores = scorer([*TURNS, [{"role": "assistant", "content": "No prompt."}]])
    assert scores[:3] == pytest.approx(expected, rel=1e-4)
    assert np.isneginf(scores[3])
    assert len({round(float(score), 3) for score in scores[:3]}) == 3
    monkeypatch.setattr(ifd, "LOGITS_BYTES", 4 * 80 * len(tokenizer))  # the longest answer alone has more
    assert scorer(TURNS) == pytest.approx(expected, rel=1e-4), "several batches"
    monkeypatch.setattr(type(scorer._model), "_supports_logits_to_keep", lambda _: False)
    assert scorer(TURNS) == pytest.approx(expected, rel=1e-4)
    assert scorer.fingerprint != IfdScorer(source, type("Other", (), {"chat_template": "x"})()).fingerprint


def test_a_prompt_that_the_template_rejects_has_no_difficulty(tmp_path, monkeypatch):
    source = locate(ModelConfig(id="tiny", weights=Weights.random, quantization=Quantization.none), tmp_path)
    tokenizer = load_tokenizer(source)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    monkeypatch.setattr(IfdScorer, "_losses", lambda _, rows: np.ones(len(rows)))
    assert np.isneginf(IfdScorer(source, tokenizer)(TURNS)).tolist() == [False, True, False]
    assert IfdScorer(source, tokenizer)([]).tolist() == []
