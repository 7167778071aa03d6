"""Reproducible numbers: seeds of the global generators, named streams of one seed, and deterministic kernels."""

import os
import random
import re
import sys
from typing import Any
from zlib import crc32

import numpy as np


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_deterministic_kernels(wanted: bool = True, strict: bool = False) -> None:
    """Choose kernels that give the same bytes in every run, or allow faster ones; on a CPU all of them do.

    Call it before the first operation on a GPU, because cuBLAS reads its variable then. An operation that has no such
    kernel raises a RuntimeError if `strict`, else PyTorch warns. Only `strict` covers the backward pass of attention.
    See https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    import torch

    if not torch.cuda.is_available():
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(wanted))
    inductor: Any = sys.modules.get("torch._inductor.config")
    if hasattr(inductor, "deterministic"):  # PyTorch 2.10
        inductor.deterministic = wanted
    torch.use_deterministic_algorithms(wanted, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it is for finding errors, and costs time


def without_deterministic_kernel(error: RuntimeError) -> str | None:
    """Return the operation for which PyTorch raised this error because it has no deterministic kernel, or None."""
    messages = "does not have a deterministic implementation|defaults to a non-deterministic"
    found = re.match(f"(.+?) (?:{messages})", str(error))
    return found[1] if found else None


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of a named stream. Streams are independent, and the same on every machine.

    See https://numpy.org/doc/stable/reference/random/parallel.html#sequence-of-integer-seeds.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, crc32(name.encode())])))
