import random

import numpy as np
import torch

from tometune.common.seeding import seed_everything, stream


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_every_global_generator_is_seeded() -> None:
    seed_everything(1)
    one = draws()
    seed_everything(1)
    assert draws() == one
    seed_everything(2)
    assert all(a != b for a, b in zip(draws(), one, strict=True))


def test_streams_are_named_and_stable() -> None:
    assert stream(0, "data").integers(1000, size=4).tolist() == stream(0, "data").integers(1000, size=4).tolist()
    assert stream(0, "data").integers(1000, size=4).tolist() != stream(0, "order").integers(1000, size=4).tolist()
    assert stream(0, "data").integers(1000, size=4).tolist() != stream(1, "data").integers(1000, size=4).tolist()
