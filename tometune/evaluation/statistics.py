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
Clusters = Sequence[Sequence[str] | None] | None  # of the examples of each task; None: they are independent
Tasks = Sequence[Sequence[float]]  # one score per example of each task

SEED = 0  # of all resamples, so that the same scores give the same report
NUMBERS_AT_ONCE = 2_000_000  # resampled examples held in memory (16 MB)
ZERO = 1e-12  # differences up to this size are rounding errors


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, with its interval and test."""

    value: float
    low: float | None  # None where a task has fewer than two examples or clusters: there is nothing to resample
    high: float | None
    p: float | None  # two-sided p-value of the value being zero; None without two seeds to test with

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(tasks: Tasks, resamples: int, confidence: float, clusters: Clusters = None) -> Estimate:
    """Return the mean of task means with its interval over examples.

    Tasks are resampled separately, so each keeps its weight.
    """
    columns = [np.asarray(scores, dtype=np.float64)[:, None] for scores in tasks]
    value = float(np.mean([column.mean() for column in columns]))
    labelled = zip(tasks, clusters or [None] * len(tasks), strict=True)
    if min(len(set(labels or range(len(scores)))) for scores, labels in labelled) < 2:
        return Estimate(value, None, None, None)
    return estimate(value, resampled_means(columns, resamples, clusters).mean(axis=0)[:, 0], [], confidence)


def paired_difference(
    base: Tasks, tuned: Tasks, resamples: int, confidence: float, clusters: Clusters = None
) -> Estimate:
    """Return the `mean_interval` of `tuned - base`, example by example.

    Raises:
        ValueError: the two do not have the same number of examples.
    """
    gains = [[after - before for after, before in zip(*task, strict=True)] for task in zip(tuned, base, strict=True)]
    return mean_interval(gains, resamples, confidence, clusters)


def resampled_means(tasks: Sequence[Floats], resamples: int, clusters: Clusters = None) -> Floats:
    """Resample the examples of each task, the same ones for all columns; returns means, [tasks, resamples, columns].

    A task is [examples, columns], and a column holds the scores of one run. Whole clusters are drawn (Davison and
    Hinkley 1997, section 3.8).
    """
    means = np.empty((len(tasks), resamples, tasks[0].shape[1]))
    for number, scores in enumerate(tasks):
        generator = np.random.default_rng([SEED, number])
        labels = None if clusters is None else clusters[number]
        if labels is not None:
            _, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
            sums = np.zeros((len(sizes), scores.shape[1]))
            np.add.at(sums, places, scores)
            scores = sums
        examples = len(scores)  # or clusters
        step = max(1, NUMBERS_AT_ONCE // examples)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            drawn = generator.integers(0, examples, (count, examples)) + examples * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * examples).reshape(count, examples)
            # A matrix product: how often each example was drawn, times its scores.
            drawn_examples = examples if labels is None else (times @ sizes)[:, None]
            means[number, start : start + count] = times.astype(np.float64) @ scores / drawn_examples
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

    `value` is the estimate itself, `examples` the estimate on resampled examples, [resamples]. `seeds` has the values
    that vary over seeds: `[values]` for the mean of a cell, `[differences]` for two cells with the same seeds,
    `[values, values]` for two cells with different seeds; it is empty with a single seed.
    """
    draws = combined_draws(examples, seeds)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), two_sided(draws) if seeds else None)


def combined_draws(examples: Floats, seeds: Sequence[Floats]) -> Floats:
    """Return [resamples], the estimate on resampled examples plus an error over seeds; arguments as in `estimate`."""
    return sum((seed_draws(values, len(examples), stream) for stream, values in enumerate(seeds)), examples)


def two_sided(draws: Floats) -> float:
    """Return the two-sided p-value of the value being zero."""
    return min(1.0, 2 * min(p_at_most(draws, 0.0), p_at_most(-draws, 0.0)))


def p_at_most(draws: Floats, bound: float) -> float:
    """Return the one-sided p-value of the value being `bound` or less."""
    return float(((draws <= bound + ZERO).sum() + 1) / (len(draws) + 1))


def p_equivalent(draws: Floats, margin: float) -> float:
    """Return the p-value of the value being `margin` or more away from zero, by two one-sided tests.

    Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680. It is below 5 % exactly if the 90 %
    interval lies within the margin.
    """
    return max(p_at_most(draws, -margin), p_at_most(-draws, -margin))


def simultaneous_intervals(draws: Sequence[Floats], alpha: float) -> list[tuple[float, float]]:
    """Return the intervals of a family that exclude zero exactly where `holm` rejects at `alpha`.

    They are Bonferroni's, which hold all m true values at once with probability 1 - alpha, at level alpha / m each.
    Where Holm's test rejects and Bonferroni's does not, the interval has the level of Holm's step instead. Only such
    intervals can make the joint coverage smaller; docs/statistics.md has the measured one.
    """
    p_values, shares = [two_sided(each) for each in draws], [len(draws)] * len(draws)
    for rank, number in enumerate(np.argsort(p_values, kind="stable")):
        share = len(draws) - rank
        if share * p_values[number] >= alpha:
            break
        if len(draws) * p_values[number] >= alpha:
            shares[number] = share
    intervals = []
    for each, share in zip(draws, shares, strict=True):
        ordered = np.sort(each)
        # The most draws beyond zero that still give a p-value below alpha / share; -1 if even none would.
        most = int(np.ceil(alpha * (len(each) + 1) / (2 * share) - 1)) - 1
        low, high = (ordered[most], ordered[-1 - most]) if most >= 0 else (min(ordered[0], 0.0), max(ordered[-1], 0.0))
        intervals.append((float(low), float(high)))
    return intervals


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


def power(
    seeds: int, difference: float, deviation: float, alpha: float, paired: bool = True, error: float = 0.0
) -> float:
    """Return the probability that the report's test finds a true difference with its sign.

    Over seeds alone it is a t test (noncentral t; Cohen 1988, chapter 2). With an error over examples, its limit is
    Cochran's, the mean of both limits weighted by the variances (1964, Biometrics 20, 191-195), averaged over the
    chi-squared distribution of the deviation that a sweep will find.

    There are `seeds` runs per arm. `deviation` is the standard deviation over seeds of the difference between one run
    of each arm, and `error` the standard error of the difference over examples. `alpha` is two-sided. Arms are `paired`
    if they share their seeds; it decides the degrees of freedom.
    """
    from scipy.stats import chi2, nct, norm, t

    freedom = (seeds - 1) * (1 if paired else 2)
    limit = t.ppf(1 - alpha / 2, freedom)
    if not error:
        return float(nct.sf(limit, freedom, difference * np.sqrt(seeds) / deviation))
    variance = deviation**2 / seeds
    found = variance * chi2.ppf((np.arange(500) + 0.5) / 500, freedom) / freedom
    limits = (found * limit + error**2 * norm.ppf(1 - alpha / 2)) / np.sqrt(found + error**2)
    return float(norm.sf((limits - difference) / np.sqrt(variance + error**2)).mean())


def detectable(seeds: int, deviation: float, alpha: float, wanted: float = 0.8, error: float = 0.0) -> float:
    """Return the smallest difference with the power `wanted`; the other arguments are those of `power`."""
    from scipy.optimize import brentq

    most = 100 * float(np.hypot(deviation / np.sqrt(seeds), error))
    return float(brentq(lambda size: power(seeds, size, deviation, alpha, error=error) - wanted, 0, most))


def seeds_needed(
    deviation: float, difference: float, wanted: float = 0.8, alpha: float = 0.05, paired: bool = True, error: float = 0
) -> int | None:
    """Return the smallest number of seeds per arm that reaches the power `wanted`; None beyond 100,000.

    The other arguments are those of `power`.
    """
    if deviation < difference / 1_000 and not error:  # scipy's noncentral t gives nan so far out
        return 2
    found = bisect_left(
        range(100_001), wanted, lo=2, key=lambda seeds: power(seeds, difference, deviation, alpha, paired, error)
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
