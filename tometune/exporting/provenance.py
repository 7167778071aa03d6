"""Whether a GGUF holds what training changed: its numbers, quantised or not, regressed on the base's and the change.

Quantising adds noise that does not know what training changed, so the change is found under noise many times larger.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tometune.exporting.llama_cpp import read_layers
from tometune.exporting.weights import AS_THEY_ARE, Found, stored, updates

SURE = 3.0
"""Standard errors from a half: with fewer, all of the change cannot be told from none."""


def check_gguf(file: Path, adapter: Path, merged: Path) -> Found:
    """Estimate the share of training's change that a GGUF holds: 1 if made of the merged model, 0 if of the base.

    By least squares over a few layers: numbers = a · base + share · change + noise. The base is merged − change; that
    the merged model is base and change, its own gate has found.

    Args:
        file: the GGUF.
        adapter: folder of the run's adapter.
        merged: folder of the merged model that it was made of.
    """
    squares, products, left, numbers = np.zeros((2, 2)), np.zeros(2), 0.0, 0
    for update in updates(adapter):
        if update.magnitude is not None or not update.name.endswith(AS_THEY_ARE):
            continue  # DoRA's change is no sum; the converter may permute queries and keys
        with tempfile.TemporaryDirectory(dir=file.parent) as place:
            found = read_layers(file, [update.name], Path(place)).get(update.name)
        change, source = update.delta.double().numpy(), stored(merged, update.name)
        if found is None or source is None or found.shape != change.shape:
            continue
        known = np.stack([source.double().numpy() - change, change]).reshape(2, -1)
        told = found.astype(np.float64).ravel()
        squares, products, left = squares + known @ known.T, products + known @ told, left + float(told @ told)
        numbers += told.size
    return _verdict(squares, products, left, numbers)


def _verdict(squares: np.ndarray, products: np.ndarray, left: float, numbers: int) -> Found:
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
    return checks, [
        f"weights: the file holds {share:.0%} (± {error:.0%}) of what training changed; it is the base without the "
        "adapter"
    ]
