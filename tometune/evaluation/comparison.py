"""Intervals and tests over seeds and examples: a hierarchical bootstrap whose seed level holds for three seeds.

A difference of two arms varies for two reasons: other seeds, other examples. Examples are many, so they are resampled:
within each task (stratified), the same ones for every run (paired; Koehn 2004, https://aclanthology.org/W04-3250).
Seeds are few. Three values have ten different resamples, whose spread is too small by (k - 1) / k and whose tails are
not those of so small a sample: the plain hierarchical bootstrap then calls far too many nulls an effect (see
docs/statistics.md). So the seed level is parametric: each resample adds to the resampled examples a draw from Student's
t with k - 1 degrees of freedom, scaled by the standard error over the k seeds.

The distribution of a sum of a scaled t and an (almost) normal part is the Behrens-Fisher distribution; its intervals
cover at least as often as stated (Robinson 1976, Annals of Statistics 4(5), 963-971). Without spread over seeds it is
the percentile interval over examples, with a single example it is Student's t interval over seeds.

Examples and seeds are crossed, so what is left of an example's score within a run is in both parts: the interval is a
little too wide, never too narrow (Owen 2007, The pigeonhole bootstrap, arXiv:0712.1111).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEED = 0
"""Of all draws: the same scores give the same report."""

NUMBERS_AT_ONCE = 2_000_000
"""Resampled examples held in memory (16 MB)."""

NOTHING = 1e-12
"""Differences below this are rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, with what is known about it."""

    value: float
    low: float
    high: float
    p: float | None
    """Two-sided, of the value being zero; None where there is no spread over seeds to test with."""


def resampled_means(tasks: Sequence[Floats], resamples: int) -> Floats:
    """Resample the examples of each task, the same ones for all columns.

    Args:
        tasks: for each task, [examples, columns]; a column is a run's score.
        resamples: how often.

    Returns:
        Mean score of the resampled examples, [tasks, resamples, columns].
    """
    return np.stack([_resample(task, resamples, [SEED, number]) for number, task in enumerate(tasks)])


def _resample(scores: Floats, resamples: int, seed: Sequence[int]) -> Floats:
    """Resample one task: how often each example was drawn, times its scores."""
    generator = np.random.default_rng(seed)
    examples = len(scores)
    means = np.empty((resamples, scores.shape[1]))
    step = max(1, NUMBERS_AT_ONCE // examples)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, examples, (count, examples)) + examples * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * examples).reshape(count, examples)
        means[start : start + count] = times.astype(np.float64) @ scores / examples
    return means


def seed_draws(values: Floats, resamples: int, stream: int = 0) -> Floats:
    """Return draws of what the mean over seeds is off by: a scaled t, at evenly spaced levels in random order.

    Args:
        values: one number a seed, at least two.
        resamples: how many.
        stream: another number gives an independent order.
    """
    from scipy.stats import t

    levels = (np.arange(resamples) + 0.5) / resamples
    quantiles = t.ppf(levels, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    draws: Floats = np.random.default_rng([SEED, 1_000 + stream]).permutation(quantiles)
    return draws


def estimate(value: float, examples: Floats, seeds: Sequence[Floats], confidence: float) -> Estimate:
    """Put the two levels together: percentile interval and two-sided p-value.

    Args:
        value: the estimate itself.
        examples: [resamples], the estimate with other examples.
        seeds: what varies over seeds: `[values]` for the mean of a cell, `[differences]` for two arms of the same
            seeds, `[values, values]` for two arms of other seeds; empty where nothing does, or only one is known.
        confidence: level of the interval, e.g. 0.95.
    """
    draws = examples.copy()
    for stream, values in enumerate(seeds):
        draws += seed_draws(values, len(draws), stream)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    if not seeds:
        return Estimate(value, float(low), float(high), None)
    beyond = min((draws <= NOTHING).sum(), (draws >= -NOTHING).sum())
    return Estimate(value, float(low), float(high), min(1.0, float(2 * (beyond + 1) / (len(draws) + 1))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted so that one threshold bounds the chance of any false finding among them.

    Valid under any dependence (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p_values: of one family; None is no test, and stays None.
    """
    tested = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[number] = largest
    return adjusted


def power(seeds: int, difference: float, deviation: float, alpha: float, paired: bool = True) -> float:
    """Return the chance that a t test finds a true difference, with its sign (noncentral t; Cohen 1988, chapter 2).

    Args:
        seeds: of each arm.
        difference: the true one.
        deviation: standard deviation over seeds of the paired differences, or of one arm's value minus another's.
        alpha: two-sided level.
        paired: whether the arms share their seeds; it decides the degrees of freedom.
    """
    from scipy.stats import nct, t

    freedom = (seeds - 1) * (1 if paired else 2)
    limit = t.ppf(1 - alpha / 2, freedom)
    centre = difference * np.sqrt(seeds) / deviation
    return float(nct.sf(limit, freedom, centre))


def seeds_needed(
    deviation: float, difference: float, wanted: float = 0.8, alpha: float = 0.05, paired: bool = True
) -> int | None:
    """Return the smallest number of seeds an arm with which a true difference is found; None beyond 100,000.

    Args:
        deviation: see `power`.
        difference: the true one.
        wanted: the power, the chance to find it.
        alpha: two-sided level of the test.
        paired: whether the arms share their seeds.
    """
    if deviation < difference / 1_000:  # two seeds are enough, and scipy's noncentral t gives nan so far out
        return 2
    low, high = 1, 2
    while power(high, difference, deviation, alpha, paired) < wanted:
        low, high = high, 2 * high
        if high > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if power(middle, difference, deviation, alpha, paired) < wanted:
            low = middle
        else:
            high = middle
    return high


def deviation_interval(deviation: float, freedom: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a standard deviation (chi-squared, normal values).

    Args:
        deviation: the sample's, n - 1.
        freedom: its degrees of freedom.
        confidence: level.
    """
    from scipy.stats import chi2

    low, high = chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], freedom)
    return float(deviation * np.sqrt(freedom / low)), float(deviation * np.sqrt(freedom / high))


def pooled_deviation(groups: Sequence[Floats]) -> tuple[float, int]:
    """Return the standard deviation within groups and its degrees of freedom.

    Args:
        groups: values that differ for one reason only, at least two a group.
    """
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return float(np.sqrt(squares / freedom)), freedom
