"""Bootstrap intervals over examples, stratified by task.

Percentile intervals (Efron and Tibshirani 1993, chapter 13) of scipy. The statistic is a mean of task means, close
to symmetric, where BCa gains nothing, and BCa is undefined when all differences are equal. What varies is the sample
of examples: how runs differ by seed is not in these intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEED = 0
"""Of the resamples: the same scores give the same interval."""

NUMBERS_AT_ONCE = 2_000_000
"""Resampled numbers held in memory (16 MB)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    value: float
    low: float | None
    """None where a task has fewer than two examples: nothing to resample."""

    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(tasks: Sequence[Sequence[float]], resamples: int, confidence: float) -> Interval:
    """Return the mean of task means with its interval.

    Args:
        tasks: for each task, one score an example. Each task is resampled by itself, so all keep their weight.
        resamples: bootstrap resamples.
        confidence: level, e.g. 0.95.
    """
    from scipy.stats import bootstrap

    samples = [np.asarray(scores, dtype=np.float64) for scores in tasks]
    value = float(np.mean([sample.mean() for sample in samples]))
    if min(map(len, samples)) < 2:
        return Interval(value, None, None)
    found = bootstrap(
        samples,
        _mean_of_means,
        n_resamples=resamples,
        batch=max(1, NUMBERS_AT_ONCE // max(map(len, samples))),
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def paired_difference(
    base: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]], resamples: int, confidence: float
) -> Interval:
    """Return the mean of task means of `tuned - base`, example by example, with its interval.

    Resampling differences is resampling pairs: what is hard for both models cancels out (Koehn 2004,
    https://aclanthology.org/W04-3250).

    Args:
        base: for each task, one score an example.
        tuned: the same examples in the same order.
        resamples: bootstrap resamples.
        confidence: level, e.g. 0.95.

    Raises:
        ValueError: the two do not have the same examples.
    """
    pairs = [list(zip(after, before, strict=True)) for after, before in zip(tuned, base, strict=True)]
    return mean_interval([[after - before for after, before in task] for task in pairs], resamples, confidence)


def _mean_of_means(*samples: Floats, axis: int) -> Any:
    """Average each sample, then over samples; `axis` is the one of the examples."""
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
