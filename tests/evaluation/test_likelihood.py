import math

import pytest
import torch

from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation import likelihood
from tometune.evaluation.generation import encode
from tometune.evaluation.likelihood import bits_per_byte

PROMPTS = ["Say it.", "the quick brown fox " * 12, "漢字 🎉?", "What is <|im_end|>?", "q"]
REFERENCES = [
    ["the fox"],
    ["a lazy dog", "naïve — “quoted” 🎉", "x"],
    ["漢字🎉漢字"],
    [" the quick brown fox jumps over the lazy dog and then some more of it all\n"],
    ["it ends with <|im_end|> as text", "no"],
]


def by_hand(model, tokenizer, prompt, reference):
    """Bits of a reference by the bare model, one example without padding."""
    text = reference.strip()
    ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    begin = len(ids)
    plain = Encoder(Template(tokenizer))._plain  # spells control tokens as text
    ids = torch.tensor([ids + plain.encode(text, add_special_tokens=False).ids])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    bits = -log_p.gather(1, ids[0, 1:, None])[begin - 1 :, 0].sum() / math.log(2)
    return float(bits) / len(text.encode("utf-8"))


@pytest.fixture
def prompts(tokenizer):
    return [encode(tokenizer, [{"role": "user", "content": text}], 512) for text in PROMPTS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("tokens", "logits"), [(4_096, 1_024), (400, 1_024), (4_096, 60), (1, 1)])
def test_batches_equal_one_example_at_a_time(model, tokenizer, prompts, monkeypatch, side, tokens, logits):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", (tokens, logits))
    monkeypatch.setattr(likelihood, "LOSSES_AT_ONCE", 7)
    expected = []
    for prompt, references in zip(prompts, REFERENCES, strict=True):
        each = [by_hand(model, tokenizer, prompt, reference) for reference in references]
        expected.append(sum(each) / len(each))
    found = bits_per_byte(model, tokenizer, prompts, REFERENCES)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == len(found)


def test_a_long_reference_is_scored_up_to_a_limit(model, tokenizer, prompts, monkeypatch):
    whole = bits_per_byte(model, tokenizer, prompts[:1], [["the fox"]])
    monkeypatch.setattr(likelihood, "LONGEST", len(tokenizer("the fox")["input_ids"]))
    assert bits_per_byte(model, tokenizer, prompts[:1], [["the fox and then some more"]]) == pytest.approx(whole)
