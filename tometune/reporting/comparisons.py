"""Comparisons of cells with Holm's correction, the seeds it would take, and variance by cause."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tometune.evaluation.comparison import (
    Floats,
    deviation_interval,
    estimate,
    holm,
    pooled_deviation,
    seeds_needed,
)
from tometune.reporting.cells import STREAMS, Cell, one_factor, pairs
from tometune.reporting.resampled import Resampled, interval, rounded
from tometune.reporting.scores import METRICS

DIFFERENCE = 0.01
"""The difference of ROUGE that `seeds_needed` is about."""

POWER = 0.8
"""The chance to find it."""

Values = dict[str, Any]


def compare_all(cells: Sequence[Cell], resampled: Resampled) -> list[Values]:
    """Compare the cells that differ in one thing, on each metric, and correct for the number of tests."""
    found = [
        _compare(cells[second], cells[first], number, resampled)
        for second, first in pairs(cells)
        for number in range(len(METRICS))
    ]
    for comparison, adjusted in zip(found, holm([comparison["p"] for comparison in found]), strict=True):
        comparison["p_holm"] = rounded(adjusted)
        comparison["p"] = rounded(comparison["p"])
    return found


def _compare(a: Cell, b: Cell, metric: int, resampled: Resampled) -> Values:
    """Return a - b on one metric: seed by seed where both have the same seeds, else as two samples."""
    names = [[run.id for run in cell.runs.values()] for cell in (a, b)]
    runs = [resampled.runs(ids, metric) for ids in names]
    examples = resampled.examples(names[0], metric) - resampled.examples(names[1], metric)
    paired = list(a.runs) == list(b.runs)
    seeds = [runs[0] - runs[1]] if paired else runs
    known = min(map(len, runs)) > 1
    delta = float(runs[0].mean() - runs[1].mean())
    result = estimate(delta, examples, seeds if known else [], resampled.confidence)
    return {
        "a": a.label,
        "b": b.label,
        "metric": METRICS[metric],
        "delta": rounded(delta),
        **interval(result),
        "interval_over": "seeds and examples" if known else "examples",
        "p": result.p,
        "p_holm": None,
        "paired": paired,
        "seeds": [len(ids) for ids in names],
        "seeds_needed": _needed(seeds, paired, 1 - resampled.confidence) if known else None,
        "examples_deviation": rounded(float(np.std(examples))),
    }


def _needed(seeds: Sequence[Floats], paired: bool, alpha: float) -> Values:
    """Return the seeds an arm that show a difference of `DIFFERENCE`, and the range its own uncertainty leaves.

    Two samples of other seeds: the deviation of a difference of two single runs, one of each arm.
    """
    deviation = float(np.sqrt(sum(np.var(values, ddof=1) for values in seeds)))
    freedom = sum(len(values) - 1 for values in seeds)
    low, high = deviation_interval(deviation, freedom, 1 - alpha)
    number, least, most = (seeds_needed(value, DIFFERENCE, POWER, alpha, paired) for value in (deviation, low, high))
    return {
        "difference": DIFFERENCE,
        "power": POWER,
        "deviation": rounded(deviation),
        "n": number,
        "low": least,
        "high": most,
    }


def variance_by_cause(cells: Sequence[Cell], resampled: Resampled) -> list[Values]:
    """Return the deviation that each stream causes by itself, over groups of runs that differ in nothing else."""
    found = []
    for stream in STREAMS:
        groups = [[run.id for run in runs] for cell in cells for runs in one_factor(cell, stream)]
        if not groups:
            continue
        entry: Values = {"cause": STREAMS[stream], "stream": f"seeds.{stream}", "groups": len(groups)}
        entry |= {"runs": len({name for names in groups for name in names})}
        for number, metric in enumerate(METRICS):
            deviation, freedom = pooled_deviation([resampled.runs(names, number) for names in groups])
            low, high = deviation_interval(deviation, freedom, resampled.confidence)
            entry["freedom"] = freedom
            entry[metric] = {"std": rounded(deviation), "ci_low": rounded(low), "ci_high": rounded(high)}
        found.append(entry)
    return found
