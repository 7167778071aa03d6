from collections import Counter

import torch

from tests.evaluation.test_generation import TALKS
from tometune.evaluation.generation import generate
from tometune.evaluation.sampling import GumbelNoise


def test_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    noisy = GumbelNoise(0.5, seed=1, examples=list(range(4000)))(torch.zeros(4000, 1), logits)
    found = Counter(noisy.argmax(dim=-1).tolist())
    expected = torch.softmax(logits[0] / 0.5, dim=-1)
    assert all(abs(found[token] / 4000 - float(expected[token])) < 0.02 for token in range(4))


def test_a_draw_depends_on_the_seed_and_not_on_the_batch(model, tokenizer):
    def texts(batch_size, seed, temperature=1.0):
        found = generate(model, tokenizer, TALKS, 12, batch_size, 512, temperature=temperature, seed=seed)
        return [answer.text for answer in found.answers]

    assert texts(1, seed=0) == texts(8, seed=0)
    assert texts(8, seed=0) != texts(8, seed=1)
    assert texts(8, seed=0, temperature=1e-6) == texts(8, seed=0, temperature=0.0)
