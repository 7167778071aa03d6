"""Instruction-following difficulty, against losses computed one row at a time."""

import numpy as np
import pytest
import torch

from tometune.config.model import ModelConfig, Precision, Quantization, Weights
from tometune.evaluation import ifd
from tometune.evaluation.ifd import IfdScorer
from tometune.models.load import load_model
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer

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


def loss(model, tokenizer, context: str | None, answer: str) -> float:
    before = [tokenizer.bos_token_id] if context is None else tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + tokenizer(answer, add_special_tokens=False)["input_ids"]])
    labels = ids.clone()
    labels[0, : len(before)] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def test_scores_are_ratios_of_losses(tmp_path, monkeypatch):
    source = locate(
        ModelConfig(id="tiny", weights=Weights.random, quantization=Quantization.none, precision=Precision.fp32),
        tmp_path,
    )
    tokenizer, model = load_tokenizer(source), load_model(source)
    expected = []
    for turns in TURNS:
        first = next(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
        prompt = tokenizer.apply_chat_template(turns[:first], add_generation_prompt=True, tokenize=False)
        answer = turns[first]["content"]
        ratio = loss(model, tokenizer, prompt, answer) / loss(model, tokenizer, None, answer)
        expected.append(ratio if ratio < 1 else -ratio)
    scorer = IfdScorer(source, tokenizer)
    empty = [[{"role": "assistant", "content": "No prompt."}]]
    scores = scorer([*TURNS, *empty])
    assert scores[:3] == pytest.approx(expected, rel=1e-4)
    assert np.isneginf(scores[3])
    assert len({round(float(score), 3) for score in scores[:3]}) == 3
    monkeypatch.setattr(ifd, "LOGITS_BYTES", 4 * 80 * len(tokenizer))  # the longest answer alone has more
    assert scorer(TURNS) == pytest.approx(expected, rel=1e-4), "several batches"
    monkeypatch.setattr(type(scorer._model), "_supports_logits_to_keep", lambda _: False)
    assert scorer(TURNS) == pytest.approx(expected, rel=1e-4)
    assert scorer.fingerprint != IfdScorer(source, type("Other", (), {"chat_template": "x"})()).fingerprint
