"""How much of a change of weights a file holds after rounding. Imports no torch."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Read = Callable[[str], np.ndarray]
"""Returns a tensor by its name, in float32."""


def change_held(names: Iterable[str], base: Read, exact: Read, written: Read) -> dict[str, Any] | None:
    """Return how much of the exact change, exact − base, the written weights hold; None if nothing was changed.

    - `share`: the projection of written − base onto the exact change, over all changed tensors: 1 if nothing was lost,
      0 for the bare base. Errors of rounding that have nothing to do with the change average out.
    - `relative_error`: the norm of what differs from the exact change, by the norm of that; errors count in full.
    - `worst_layer`: the same of the tensor with the smallest share.
    - `zeroed`: weights of all tensors that are 0 in the file only, e.g. below the smallest number of its type.
    """
    layers, zeroed = {}, 0
    for name in names:
        before, after, found = base(name), exact(name), written(name)
        zeroed += int(np.count_nonzero((found == 0) & (after != 0)))
        if np.array_equal(before, after):
            continue
        change, error = after - before, found - after
        square = (change * change).sum(dtype=np.float64)
        layers[name] = square, square + (error * change).sum(dtype=np.float64), (error * error).sum(dtype=np.float64)
    if not layers:
        return None

    def shares(square: float, held: float, error: float) -> dict[str, float]:
        return {"share": round(float(held / square), 5), "relative_error": round(float(np.sqrt(error / square)), 5)}

    worst = min(layers, key=lambda name: layers[name][1] / layers[name][0])
    total = shares(*(sum(column) for column in zip(*layers.values(), strict=True)))
    return total | {"layers": len(layers), "worst_layer": {"name": worst, **shares(*layers[worst])}, "zeroed": zeroed}
