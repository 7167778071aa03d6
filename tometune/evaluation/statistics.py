"""Intervals and tests over seeds and examples, by a bootstrap whose seed level is parametric.

The difference between two cells varies because of other seeds and because of other examples. There are many examples,
so they are resampled: within each task (stratified), and the same ones for every run (paired; Koehn 2004,
https://aclanthology.org/W04-3250). There are few seeds, and resampling them reports far too many false effects. Each
resample therefore adds a draw from Student's t with k - 1 degrees of freedom, scaled by the standard error over the k
seeds. docs/statistics.md has the reasons, the sources and measured error rates.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEED = 0  # of all resamples, so that the same scores give the same report
NUMBERS_AT_ONCE = 2_000_000  # resampled examples held in memory (16 MB)
ZERO = 1e-12  # differences up to this size are rounding errors


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, with its interval and test."""

    value: float
    low: float | None  # None where a task has fewer than two examples, so that there is nothing to resample
    high: float | None
    p: float | None  # two-sided p-value of the value being zero; None without two seeds to test with

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(tasks: Sequence[Sequence[float]], resamples: int, confidence: float) -> Estimate:
    """Return the mean of task means with its interval over examples.

    `tasks` has one score per example of each task. Tasks are resampled separately, so each keeps its weight.
    """
    columns = [np.asarray(scores, dtype=np.float64)[:, None] for scores in tasks]
    value = float(np.mean([column.mean() for column in columns]))
    if min(map(len, columns)) < 2:
        return Estimate(value, None, None, None)
    return estimate(value, resampled_means(columns, resamples).mean(axis=0)[:, 0], [], confidence)


def paired_difference(
    base: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]], resamples: int, confidence: float
) -> Estimate:
    """Return the `mean_interval` of `tuned - base`, example by example.

    Raises:
        ValueError: the two do not have the same number of examples.
    """
    gains = [[after - before for after, before in zip(*task, strict=True)] for task in zip(tuned, base, strict=True)]
    return mean_interval(gains, resamples, confidence)


def resampled_means(tasks: Sequence[Floats], resamples: int) -> Floats:
    """Resample the examples of each task, the same ones for all columns.

    Args:
        tasks: for each task, [examples, columns]; a column holds the scores of one run.
        resamples: number of resamples.

    Returns:
        Mean scores of the resampled examples, [tasks, resamples, columns].
    """
    means = np.empty((len(tasks), resamples, tasks[0].shape[1]))
    for number, scores in enumerate(tasks):
        generator = np.random.default_rng([SEED, number])
        examples = len(scores)
        step = max(1, NUMBERS_AT_ONCE // examples)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            drawn = generator.integers(0, examples, (count, examples)) + examples * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * examples).reshape(count, examples)
            # A matrix product: how often each example was drawn, times its scores.
            means[number, start : start + count] = times.astype(np.float64) @ scores / examples
    return means


def seed_draws(values: Floats, resamples: int, stream: int = 0) -> Floats:
    """Return draws of the error of a mean over seeds: a scaled t at evenly spaced levels, in random order.

    `values` has one number per seed, at least two. Another `stream` gives an independent order.
    """
    from scipy.stats import t

    levels = (np.arange(resamples) + 0.5) / resamples
    quantiles = t.ppf(levels, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    draws: Floats = np.random.default_rng([SEED, 1_000 + stream]).permutation(quantiles)
    return draws


def estimate(value: float, examples: Floats, seeds: Sequence[Floats], confidence: float) -> Estimate:
    """Combine both levels into a percentile interval and a two-sided p-value.

    Args:
        value: the estimate itself.
        examples: [resamples], the estimate on resampled examples.
        seeds: the values that vary over seeds: `[values]` for the mean of a cell, `[differences]` for two cells with
            the same seeds, `[values, values]` for two cells with different seeds; empty with a single seed.
        confidence: level of the interval, e.g. 0.95.
    """
    draws = examples.copy()
    for stream, values in enumerate(seeds):
        draws += seed_draws(values, len(draws), stream)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    if not seeds:
        return Estimate(value, float(low), float(high), None)
    beyond = min((draws <= ZERO).sum(), (draws >= -ZERO).sum())
    return Estimate(value, float(low), float(high), min(1.0, float(2 * (beyond + 1) / (len(draws) + 1))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted so that one threshold bounds the probability of any false finding in the family.

    Valid under any dependence (Holm 1979, Scandinavian Journal of Statistics 6, 65-70). None (not tested) stays None.
    """
    tested = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[number] = largest
    return adjusted


def power(seeds: int, difference: float, deviation: float, alpha: float, paired: bool = True) -> float:
    """Return the probability that a t test finds a true difference with its sign (noncentral t; Cohen 1988, chapter 2).

    Args:
        seeds: number of seeds per arm.
        difference: the true difference.
        deviation: standard deviation over seeds of the difference between one run of each arm.
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
    """Return the smallest number of seeds per arm that reaches the power `wanted`; None beyond 100,000.

    The other arguments are those of `power`.
    """
    if deviation < difference / 1_000:  # two seeds are enough, and scipy's noncentral t gives nan so far out
        return 2
    found = bisect_left(
        range(100_001), wanted, lo=2, key=lambda seeds: power(seeds, difference, deviation, alpha, paired)
    )
    return found if found <= 100_000 else None


def deviation_interval(deviation: float, freedom: int, confidence: float) -> tuple[float, float]:
    """Return the chi-squared interval of a sample standard deviation (n - 1) with these degrees of freedom."""
    from scipy.stats import chi2

    low, high = chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], freedom)
    return float(deviation * np.sqrt(freedom / low)), float(deviation * np.sqrt(freedom / high))


def pooled_deviation(groups: Sequence[Floats]) -> tuple[float, int]:
    """Return the standard deviation within groups of at least two values each, and its degrees of freedom."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return float(np.sqrt(squares / freedom)), freedom
