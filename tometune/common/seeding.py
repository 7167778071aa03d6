"""Seeds: the global generators of every library, and named streams of one seed."""

import random
from zlib import crc32

import numpy as np


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of a named stream. Streams are independent, and the same on every machine.

    See https://numpy.org/doc/stable/reference/random/parallel.html#sequence-of-integer-seeds.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, crc32(name.encode())])))
