import numpy as np
import pytest

from tometune.evaluation.statistics import mean_interval, paired_difference


def test_one_task_by_the_normal_formula():
    scores = np.random.default_rng(0).normal(0.3, 0.2, 400)
    found = mean_interval([scores], 10_000, 0.95)
    half = 1.96 * scores.std(ddof=1) / 20
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.002)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.002)


def test_tasks_weigh_the_same_and_are_resampled_apart():
    """A task without variation adds none; its size does not matter. The variance of the mean of two is a quarter."""
    generator = np.random.default_rng(1)
    noisy, flat = generator.normal(0, 1, 400), np.full(4000, 2.0)
    found = mean_interval([noisy, flat], 10_000, 0.95)
    assert found.value == pytest.approx((noisy.mean() + 2) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1 / 20 / 2, rel=0.1)


def test_coverage():
    """Of 200 experiments with a known truth, about 95 % have it in their interval."""
    generator = np.random.default_rng(2)
    truths = [0.1, 0.4, 0.25]
    hits = 0
    for _ in range(200):
        tasks = [generator.beta(20 * truth, 20 * (1 - truth), 80) for truth in truths]
        found = mean_interval(tasks, 1000, 0.95)
        hits += found.low <= np.mean(truths) <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def pairs(shift, generator, hard=0.2, noise=0.05, n=150):
    """Scores of two models on the same examples, which differ much more from each other than the models do."""
    base = [np.clip(generator.normal(0.4, hard, n), 0, 1) for _ in range(4)]
    return base, [task + shift + generator.normal(0, noise, n) for task in base]


def test_a_planted_shift_is_found_and_a_null_is_not():
    generator = np.random.default_rng(3)
    found = [paired_difference(*pairs(0.01, generator), 2000, 0.95) for _ in range(40)]
    null = [paired_difference(*pairs(0.0, generator), 2000, 0.95) for _ in range(40)]
    assert sum(interval.excludes_zero and interval.low > 0 for interval in found) >= 38
    assert sum(interval.excludes_zero for interval in null) <= 6


def test_pairing_is_what_finds_it():
    """The same shift drowns where the examples are not paired: the interval of the means is ten times wider."""
    base, tuned = pairs(0.01, np.random.default_rng(4))
    paired = paired_difference(base, tuned, 2000, 0.95)
    alone = mean_interval(base, 2000, 0.95)
    assert paired.excludes_zero
    assert alone.high - alone.low > 3 * (paired.high - paired.low)


def test_same_scores_same_interval_and_no_difference_none():
    base, tuned = pairs(0.01, np.random.default_rng(5))
    assert paired_difference(base, tuned, 500, 0.9) == paired_difference(base, tuned, 500, 0.9)
    same = paired_difference(base, base, 500, 0.95)
    assert (same.value, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)


def test_one_example_has_no_interval():
    found = paired_difference([[0.1], [0.2, 0.3]], [[0.3], [0.2, 0.3]], 500, 0.95)
    assert (found.value, found.low, found.excludes_zero) == (pytest.approx(0.1), None, False)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="longer"):
        paired_difference([[0.1, 0.2]], [[0.1]], 500, 0.95)
