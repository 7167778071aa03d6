import random

import numpy as np
import torch

from tometune.common.seeding import seed_everything, stream


def draws(seed: int) -> tuple[float, float, float]:
    seed_everything(seed)
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_every_global_generator_is_seeded():
    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2), strict=True))


def test_streams_are_named_and_stable():
    drawn = [stream(*which).integers(10**9) for which in ((0, "data"), (0, "data"), (0, "order"), (1, "data"))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
