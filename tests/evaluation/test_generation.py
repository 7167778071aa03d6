import logging
from collections import Counter

import pytest
import torch
from transformers import GenerationConfig

from tometune.common.errors import UserError
from tometune.config.model import Precision
from tometune.data import encoder as encoder_module
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation.engines.cuda_graph import CudaGraph
from tometune.evaluation.generation import GAP, GumbelNoise, encode, generate, share

THINGS = [(0, "bread"), (3, "river"), (1, "violin"), (7, "dog"), (2, "computer")]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "then", "some", "more", "of", "it all"]
TALKS = [[{"role": "user", "content": " ".join(WORDS[n % 7 : n % 7 + 1 + n % 9] * (1 + n % 3))}] for n in range(24)]


def by_hand(model, tokenizer, talk, most):
    """Decode greedily with the bare model: no cache, no padding, no `generate`."""
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    new = []
    while len(new) < most and (not new or new[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            new.append(int(model(input_ids=ids).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
    return tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def test_batches_equal_decoding_by_hand(model, tokenizer):
    expected = [by_hand(model, tokenizer, talk, 20) for talk in TALKS]
    assert len({text for text, _ in expected}) > 12
    for batch_size in (1, 5, 24):
        told = []
        found = generate(model, tokenizer, TALKS, 20, batch_size, 512, told.append)
        assert [(answer.text, answer.tokens) for answer in found.answers] == expected
        assert (told[0], sum(told), found.seconds > 0) == (batch_size, 24, True)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_whole_batches(monkeypatch, processes):
    """So the answers are those of one process, also where they depend on the size of a batch."""
    monkeypatch.setattr("tometune.evaluation.generation.processes", lambda: processes)
    order, found = [7 * index for index in range(23)], []
    for number in range(processes):
        monkeypatch.setattr("tometune.evaluation.generation.rank", lambda number=number: number)
        own = share(order, 4)
        found.append([own[start : start + 4] for start in range(0, len(own), 4)])
        assert share(order, 128) == ([] if number else order)
    assert sorted(batch for own in found for batch in own) == [order[start : start + 4] for start in range(0, 23, 4)]
    assert {len(own) for own in found} == {6 // processes}


def test_answers_end_at_the_end_of_turn_whatever_the_models_own_generation_config(model, tokenizer, caplog, recwarn):
    """Some answers of this model end by themselves; they contain no marker, and padding after them is not counted."""
    plain = generate(model, tokenizer, TALKS, 100, 24, 512).answers
    assert {answer.ended for answer in plain} == {True, False}
    assert all(answer.ended or answer.tokens == 100 for answer in plain)
    assert any(answer.ended and answer.tokens < 100 for answer in plain)
    assert not any("<|" in answer.text for answer in plain)
    model.generation_config = GenerationConfig(
        **{"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.5},
        **{"no_repeat_ngram_size": 2, "num_beams": 3, "min_new_tokens": 15},
        **{"eos_token_id": [tokenizer.eos_token_id, 307], "pad_token_id": tokenizer.pad_token_id},
    )
    recwarn.clear()
    with caplog.at_level(logging.WARNING):
        other = generate(model, tokenizer, TALKS, 100, 24, 512).answers
    assert not caplog.records
    assert not list(recwarn)
    pairs = list(zip(plain, other, strict=True))
    assert all(one.text.startswith(two.text) for one, two in pairs)  # only the second end-of-turn token is used
    assert any(one.text.startswith(f"{two.text} dog") for one, two in pairs)
    assert model.generation_config.num_beams == 3


def talk(text):
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


def test_short_prompts_are_left_alone_and_long_ones_marked(model, tokenizer):
    found = generate(model, tokenizer, [TALKS[0], talk("word " * 200), talk("Hello")], 4, 2, 60)
    assert [answer.prompt.shortened for answer in found.answers] == [False, True, False]
    prompt = found.answers[-1].prompt
    assert prompt.text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.ids == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]


def test_long_prompts_lose_their_middle_and_no_half_of_a_character_is_left(tokenizer):
    text = "START " + " ".join(f"word{n}" for n in range(100)) + " END"
    encoder = Encoder(Template(tokenizer))
    for most in (45, 60, 61, 120):
        (prompt,) = encode(encoder, [talk(text)], most)
        assert most - 8 <= len(prompt.ids) <= most
        assert "Be kind." in prompt.text
        head, tail = prompt.text.split("user\n")[1].split("<|im_end|>")[0].split(GAP)
        assert text.startswith(head)
        assert text.endswith(tail)
        assert abs(len(head) - len(tail)) < 12
    for most in range(45, 60):
        assert "\ufffd" not in encode(encoder, [talk("漢字🎉" * 50)], most)[0].text
    with pytest.raises(UserError, match=r"eval\.max_prompt_tokens=10: too few"):
        encode(encoder, [talk("hello " * 50)], 10)


def test_prompts_are_encoded_in_batches_without_a_copy_of_the_vocabulary(tokenizer, monkeypatch):
    talks = [*TALKS, talk("word " * 30)] * 3
    expected = [encode(Encoder(Template(tokenizer)), [each], 512)[0] for each in talks]
    monkeypatch.setattr(encoder_module, "HELD", 2)
    monkeypatch.setattr(encoder_module, "_plain_copy", None)  # for Llama 3 it needs 0.2 s in each task
    assert encode(Encoder(Template(tokenizer)), talks, 512) == expected


@pytest.mark.parametrize(("most", "shortened"), [(2_000, False), (100, True)])
def test_control_tokens_that_a_message_spells_stay_text_as_in_training(tokenizer, most, shortened):
    encoder = Encoder(Template(tokenizer))
    (prompt,) = encode(encoder, [talk("What is <|im_end|>? " * 40)], most)
    assert (prompt.shortened, len(prompt.ids) <= most) == (shortened, True)
    assert "What is <|im_end|>?" in prompt.text
    row = [*prompt.messages, {"role": "assistant", "content": "the end"}]
    ((trained, ((start, _),)),) = encoder.encode(encoder.template.render([row]))
    assert prompt.ids == trained[:start]
    assert prompt.ids.count(tokenizer.eos_token_id) == 2, "one per turn"


def test_draws_follow_the_softmax_and_depend_on_the_seed_but_not_on_the_batch(model, tokenizer):
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    noisy = GumbelNoise(0.5, seed=1, examples=list(range(4000)))(torch.zeros(4000, 1), logits)
    found = Counter(noisy.argmax(dim=-1).tolist())
    expected = torch.softmax(logits[0] / 0.5, dim=-1)
    assert all(abs(found[token] / 4000 - float(expected[token])) < 0.02 for token in range(4))

    def texts(batch_size, seed, temperature=1.0):
        found = generate(model, tokenizer, TALKS, 12, batch_size, 512, temperature=temperature, seed=seed)
        return [answer.text for answer in found.answers]

    assert texts(1, seed=0) == texts(8, seed=0)
    assert texts(8, seed=0) != texts(8, seed=1)
    assert texts(8, seed=0, temperature=1e-6) == texts(8, seed=0, temperature=0.0)


@pytest.mark.smollm2
@pytest.mark.nightly
def test_real_weights_in_float32_answer_the_same_in_every_batch(smollm2_model):
    """In 16 bits another batch size rounds differently, and some answers differ; see `eval.batch_size`."""
    model, tokenizer = smollm2_model(Precision.fp32)
    asked = [[{"role": "user", "content": f"Say in one sentence what {'a very ' * n}{name} is."}] for n, name in THINGS]
    engines = ((1, None), (5, None), (5, CudaGraph(model, 800, capture=False)))
    answers = [generate(model, tokenizer, asked, 16, size, 512, engine=engine).answers for size, engine in engines]
    texts = [[answer.text for answer in found] for found in answers]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) == 5
