"""The share of a change that a file holds: a made-up case with a known answer."""

import numpy as np

from tometune.exporting.gate import change_held, lost_change


def test_the_share_of_a_known_change():
    base_ = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32), "c": np.ones(1, np.float32)}
    exact = base_ | {"a": np.array([3, 4], np.float32), "b": np.array([2, 1], np.float32)}
    held = base_ | {"a": np.array([3, 0], np.float32), "c": np.zeros(1, np.float32)}
    change = change_held(exact, base_.get, exact.get, held.get)
    assert change == {
        "share": round(9 / 26, 5),  # (9 + 0) of |change|², 25 + 1
        "relative_error": round((17 / 26) ** 0.5, 5),  # errors of 4 and 1
        "layers": 2,
        "worst_layer": {"name": "b", "share": 0, "relative_error": 1},
        "zeroed": 2,  # the second weight of a, and that of c
    }
    assert change_held(exact, exact.get, exact.get, held.get) is None
    assert lost_change(change, 0.3) == []
    assert lost_change(change, 0.4)[0].startswith("weights: the file holds 34.6% of what training changed, less than 4")
    assert lost_change({"share": float("nan")}, 0)
