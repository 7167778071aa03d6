import numpy as np
import pytest
from scipy import stats

from tests.evaluation.simulation import World, excluding, ours, plain, sweeps
from tometune.evaluation.statistics import (
    deviation_interval,
    estimate,
    holm,
    mean_interval,
    paired_difference,
    pooled_deviation,
    power,
    resampled_means,
    seed_draws,
    seeds_needed,
)

SWEEPS = 200
MOST = stats.binom.ppf(0.975, SWEEPS, 0.05)  # false findings, if their probability is 5 %


def test_resampled_means_have_the_standard_error_and_share_their_examples(monkeypatch):
    scores = np.random.default_rng(0).normal(0.4, 0.2, (500, 1))
    draws = resampled_means([np.hstack([scores, scores + 0.1]), np.hstack([scores, scores])], 20_000)
    assert draws.shape == (2, 20_000, 2)
    assert draws[0, :, 0].mean() == pytest.approx(scores.mean(), abs=3e-4)
    assert draws[0, :, 0].std() == pytest.approx(scores.std() / np.sqrt(500), rel=0.02)
    assert np.allclose(draws[0, :, 1] - draws[0, :, 0], 0.1), "the same examples for every column"
    assert abs(np.corrcoef(draws[0, :, 0], draws[1, :, 0])[0, 1]) < 0.1, "others for each task"
    monkeypatch.setattr("tometune.evaluation.statistics.NUMBERS_AT_ONCE", 7 * 500)
    assert np.allclose(resampled_means([scores], 2_000), draws[:1, :2_000, :1])


def test_seed_draws_are_a_scaled_t():
    values = np.array([0.1, 0.3, 0.2])
    draws, other = seed_draws(values, 10_000), seed_draws(values, 10_000, stream=1)
    scale = values.std(ddof=1) / np.sqrt(3)
    assert np.quantile(draws, 0.975) == pytest.approx(scale * stats.t.ppf(0.975, 2), rel=1e-2)
    assert sorted(draws) == pytest.approx(sorted(other))
    assert abs(stats.spearmanr(draws, other).statistic) < 0.05


def test_an_estimate_is_a_t_a_z_or_a_behrens_fisher_test():
    """Without examples, without spread over seeds, and with two samples.

    Fisher and Yates, Statistical Tables, table VI: 2.435 for 6 and 6 degrees of freedom, equal variances, 5 %.
    """
    differences = np.array([0.02, 0.05, 0.01])
    found = estimate(differences.mean(), np.full(20_000, differences.mean()), [differences], 0.95)
    expected = stats.ttest_1samp(differences, 0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=0.02)
    assert found.p == pytest.approx(expected.pvalue, rel=0.02)

    scores = np.random.default_rng(3).normal(0.02, 0.2, (400, 1))
    value, error = float(scores.mean()), scores.std() / 20
    found = estimate(value, resampled_means([scores], 20_000)[0, :, 0], [np.full(3, value)], 0.95)
    assert (found.low, found.high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.05 * error)
    assert found.p == pytest.approx(2 * stats.norm.sf(value / error), rel=0.15)

    values = np.arange(-3.0, 4.0)
    found = estimate(0.0, np.zeros(50_000), [values, values], 0.95)
    error = np.sqrt(2 * values.var(ddof=1) / 7)
    assert (-found.low / error, found.high / error) == pytest.approx((2.435, 2.435), rel=0.01)


def test_equal_scores_differ_by_nothing_and_one_seed_has_no_test():
    found = estimate(0.0, np.full(1_000, 1e-17), [np.zeros(3)], 0.95)
    assert (found.low, found.high, found.p) == (pytest.approx(0), pytest.approx(0), 1.0)
    assert estimate(0.1, np.full(100, 0.1), [], 0.95).p is None


@pytest.mark.parametrize("world", [World(), World(seed=0.002), World(seed=0.02), World(seeds=5)])
def test_null_is_not_found(world):
    """Of 200 sweeps without an effect, no more than 5 % are called one."""
    tasks = sweeps(world, SWEEPS, np.random.default_rng(0))
    assert excluding(ours(tasks, 2_000), 0.0) <= MOST
    assert excluding(ours(tasks, 2_000, paired=False), 0.0) <= MOST
    if world == World():  # why seeds are not resampled: three of them, drawn from three, find far too many effects
        assert excluding(plain(tasks, 2_000), 0.0) > 20


def test_planted_effect_is_found():
    """As often as the t test's power says, and the interval holds the truth 95 % of the time."""
    for effect in (0.05, 0.08):
        world = World(effect=effect)
        found = ours(sweeps(world, SWEEPS, np.random.default_rng(3)), 2_000)
        deviation = np.sqrt(2 * world.seed**2 + 2 * world.rest**2 / 1_000)
        hits = sum(low > 0 for low, _ in found)
        assert hits >= stats.binom.ppf(0.01, SWEEPS, power(3, effect, deviation, 0.05))
        assert excluding(found, effect) <= MOST
    assert hits >= 0.95 * SWEEPS


def test_family_of_nulls_is_kept_too():
    """Three arms without effect, three comparisons: any finding after Holm's correction in at most 5 % of sweeps."""
    generator = np.random.default_rng(8)
    wrong = 0
    for _ in range(SWEEPS):
        runs = 0.4 + generator.normal(0, 0.01, (3, 3))
        examples = generator.normal(0, 0.001, (3, 2_000))
        p_values = []
        for a, b in ((1, 0), (2, 0), (2, 1)):
            delta = runs[a] - runs[b]
            p_values.append(estimate(delta.mean(), delta.mean() + examples[a] - examples[b], [delta], 0.95).p)
        wrong += min(holm(p_values)) < 0.05
    assert wrong <= MOST


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Wikipedia, Holm-Bonferroni method
        ([0.5, None, 0.01], [0.5, None, 0.02]),
        ([0.6, 0.7], [1.0, 1.0]),
    ],
)
def test_holm(p_values, adjusted):
    assert holm(p_values) == [None if p is None else pytest.approx(p) for p in adjusted]


@pytest.mark.parametrize(("effect_size", "pairs", "each"), [(0.5, 34, 64), (0.8, 15, 26), (0.2, 199, 394)])
def test_seeds_needed(effect_size, pairs, each):
    """The usual tables: G*Power (paired t, two-sided, alpha 0.05, power 0.8), and Cohen 1988, table 2.4.1.

    The deviation of a difference of two samples is √2 that of one arm.
    """
    assert seeds_needed(0.01 / effect_size, 0.01) == pairs
    assert abs(seeds_needed(np.sqrt(2) * 0.01 / effect_size, 0.01, paired=False) - each) <= 1
    assert [seeds_needed(deviation, 0.01) for deviation in (0.0, 1e-6, 1.1, 50.0)] == [2, 2, 94_974, None]


def test_deviation_interval_covers_and_groups_are_pooled():
    generator = np.random.default_rng(6)
    deviations = generator.normal(0, 2.0, (4_000, 3)).std(axis=1, ddof=1)
    ends = [deviation_interval(deviation, 2, 0.95) for deviation in deviations]
    assert np.mean([low <= 2.0 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.015)
    groups = [np.array([1.0, 3.0]), np.array([10.0, 11.0, 12.0])]
    assert pooled_deviation(groups) == (pytest.approx(np.sqrt((2 + 2) / 3)), 3)


def test_the_interval_of_a_run_covers_the_truth_and_tasks_weigh_the_same():
    """Of 200 experiments with a known truth, about 95 % have it in their interval."""
    generator = np.random.default_rng(2)
    truths, hits = [0.1, 0.4, 0.25], 0
    for _ in range(SWEEPS):
        tasks = [generator.beta(20 * truth, 20 * (1 - truth), 80) for truth in truths]
        found = mean_interval(tasks, 1000, 0.95)
        hits += found.low <= np.mean(truths) <= found.high
    assert 0.90 <= hits / SWEEPS <= 0.99
    noisy, flat = generator.normal(0, 1, 400), np.full(4000, 2.0)
    found = mean_interval([noisy, flat], 10_000, 0.95)
    assert found.value == pytest.approx((noisy.mean() + 2) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1 / 20 / 2, rel=0.1), "whatever the size of a task"


def test_one_example_has_no_interval_and_other_examples_are_refused():
    found = paired_difference([[0.1], [0.2, 0.3]], [[0.3], [0.2, 0.3]], 500, 0.95)
    assert (found.value, found.low, found.excludes_zero) == (pytest.approx(0.1), None, False)
    with pytest.raises(ValueError, match="longer"):
        paired_difference([[0.1, 0.2]], [[0.1]], 500, 0.95)
