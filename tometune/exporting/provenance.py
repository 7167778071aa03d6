"""Whether a GGUF holds what training changed: its numbers, quantised or not, regressed on the base's and the change.

Quantising adds noise that does not know what training changed, so the change is found under noise many times larger.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tometune.exporting.llama_cpp import read_layers
from tometune.exporting.weights import AS_THEY_ARE, Found, stored

SURE = 3.0
"""Standard errors from a half: with fewer, all of the change cannot be told from none."""


def check_gguf(
    file: Path, originals: Mapping[str, torch.Tensor], merged: Path, before: str = "the base without the adapter"
) -> Found:
    """Estimate the share of training's change that a GGUF holds: 1 if made of the merged model, 0 if of the base.

    By least squares over a few layers: numbers = a · base + share · change + noise. The change is what the merged model
    holds of it in 16 bits; that it holds what it should, its own gate has found.

    Args:
        file: the GGUF.
        originals: the base's weights by layer.
        merged: folder of the merged model that it was made of.
        before: what it is called that training began with.
    """
    squares, products, left, numbers = np.zeros((2, 2)), np.zeros(2), 0.0, 0
    for name, original in originals.items():
        if not name.endswith(AS_THEY_ARE):
            continue  # the converter may permute queries and keys
        with tempfile.TemporaryDirectory(dir=file.parent) as place:
            found = read_layers(file, [name], Path(place)).get(name)
        after = stored(merged, name)
        if found is None or after is None or found.shape != original.shape:
            continue
        base = original.to(after.dtype).double().numpy()
        known = np.stack([base, after.double().numpy() - base]).reshape(2, -1)
        told = found.astype(np.float64).ravel()
        squares, products, left = squares + known @ known.T, products + known @ told, left + float(told @ told)
        numbers += told.size
    return _verdict(squares, products, left, numbers, before)


def _verdict(squares: np.ndarray, products: np.ndarray, left: float, numbers: int, before: str) -> Found:
    """Solve, and say which it is where that is sure."""
    checks: dict[str, Any] = {"numbers": numbers, "verdict": "cannot tell"}
    if not numbers or not squares[1, 1] or np.linalg.cond(squares) > 1e15:
        return checks, []
    inverse = np.linalg.inv(squares)
    solved = inverse @ products
    noise = max(left - float(solved @ products), 0.0) / numbers
    share, error = float(solved[1]), float(np.sqrt(noise * inverse[1, 1]))
    checks |= {"share_of_change": round(share, 4), "standard_error": round(error, 4)}
    if not np.isfinite([share, error]).all() or abs(share - 0.5) < SURE * error:
        return checks, []
    checks["verdict"] = "adapter" if share > 0.5 else "base"
    if share > 0.5:
        return checks, []
    return checks, [f"weights: the file holds {share:.0%} (± {error:.0%}) of what training changed; it is {before}"]
