"""Several arms against one reference arm, equivalence, clusters and planned power: 200 simulated sweeps each."""

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.families import clustered, equivalence, families, planned_power
from tometune.evaluation.statistics import (
    combined_draws,
    detectable,
    mean_interval,
    p_at_most,
    p_equivalent,
    power,
    resampled_means,
    seeds_needed,
    simultaneous_intervals,
)

SWEEPS = 200
MOST = stats.binom.ppf(0.975, SWEEPS, 0.05) / SWEEPS  # share of false findings, if their probability is 5 %


@pytest.mark.parametrize("effects", [[0.0] * 4, [0.08, -0.08, 0.0, 0.0], [0.05, -0.05] * 2])
def test_arms_against_one_reference_keep_their_level_and_their_intervals_agree(effects):
    """`families` also checks that an interval excludes zero exactly if its corrected p-value is below 5 %."""
    found = families(effects, SWEEPS, np.random.default_rng(1), resamples=500)
    assert found["any false"] <= MOST
    assert found["all covered"] >= 1 - MOST
    if effects[0] == 0.08:
        assert found["found"] > 0.4


def test_simultaneous_intervals_are_bonferronis_but_where_only_holm_rejects():
    draws = [np.linspace(0.001, 1, 1_999) * scale for scale in (1, -1)]
    draws.append(np.linspace(-0.018, 0.982, 1_999))  # p = 0.038: above 0.05 / 3, and the last step is 0.05
    both = simultaneous_intervals(draws, 0.05)
    assert both[0][0] > 0 > both[1][1]
    assert both[2][0] > 0, "Holm's last step"
    alone = simultaneous_intervals([*draws, np.linspace(-0.5, 0.5, 1_999)], 0.05)
    assert alone[2][0] < 0, "with a fourth that is not rejected, 0.038 is not below 0.05 / 2"
    assert alone[0][0] < both[0][0], "more differences make wider intervals"
    assert simultaneous_intervals([np.full(10, 0.1)], 0.05) == [(0.0, 0.1)], "too few draws for any finding"
    assert simultaneous_intervals([], 0.05) == []


def test_a_difference_of_the_margin_is_not_called_the_same_and_none_is():
    for options in ({}, {"seed": 0.002, "seeds": 5}):
        generator = np.random.default_rng(2)
        assert equivalence([0.01], SWEEPS, generator, resamples=500, **options)[0] <= MOST
        assert max(equivalence([-0.01] * 4, SWEEPS, generator, resamples=500, **options)) <= MOST
    same, no_worse = equivalence([0.0], SWEEPS, generator, resamples=500, **options)
    assert no_worse > same > 0.7


def test_two_one_sided_tests_are_the_t_tests_and_agree_with_the_90_percent_interval():
    differences = np.array([0.002, -0.001, 0.003, 0.0])
    draws = combined_draws(np.full(20_000, differences.mean()), [differences])
    lower = stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, 0.01, alternative="less").pvalue
    assert p_at_most(draws, -0.01) == pytest.approx(lower, rel=0.05, abs=1e-4)
    assert p_equivalent(draws, 0.01) == pytest.approx(max(lower, upper), rel=0.05, abs=1e-4)
    for margin in (0.001, 0.003, 0.004, 0.01):
        low, high = np.quantile(draws, [0.05, 0.95])
        assert (p_equivalent(draws, margin) < 0.05) == (-margin < low and high < margin)


@pytest.mark.parametrize(
    ("icc", "clusters", "least", "most"), [(0.3, True, 0, 0.10), (0.3, False, 0.12, 1), (0, True, 0, MOST)]
)
def test_clusters_keep_the_level_where_the_plain_interval_does_not(icc, clusters, least, most):
    assert least <= clustered(icc, SWEEPS, np.random.default_rng(3), clusters) <= most


def test_clusters_are_drawn_whole_and_weigh_by_their_examples():
    generator = np.random.default_rng(4)
    labels = [str(number // 4) for number in range(400)]
    shared = np.repeat(generator.normal(0, 1, 100), 4)[:, None]
    draws = resampled_means([shared], 4_000, [labels])[0, :, 0]
    assert draws.std() == pytest.approx(shared.std() / 10, rel=0.05), "as of 100 examples"
    alone = resampled_means([shared], 500, [[str(number).zfill(3) for number in range(400)]])
    assert np.allclose(alone, resampled_means([shared], 500)), "each example in its own cluster"
    uneven = resampled_means([np.array([[1.0]] * 9 + [[0.0]])], 4_000, [["a"] * 9 + ["b"]])[0, :, 0]
    assert set(uneven.round(6)) == {0.0, 0.9, 1.0}
    wide, narrow = (mean_interval([shared[:, 0]], 1_000, 0.95, each) for each in ([labels], None))
    assert wide.high - wide.low > 1.7 * (narrow.high - narrow.low)


def test_the_detectable_difference_is_found_with_the_planned_power():
    """With the report's own intervals, over seeds and examples."""
    assert power(3, detectable(3, 0.01, 0.05), 0.01, 0.05) == pytest.approx(0.8)
    assert power(3, 0.05, 0.01, 0.05, error=1e-9) == pytest.approx(power(3, 0.05, 0.01, 0.05), abs=1e-3)
    assert detectable(3, 0.0, 0.05, error=0.001) == pytest.approx(2.8 * 0.001, rel=0.01), "1.96 + 0.84"
    assert seeds_needed(0.01, 0.01, error=0.0) == seeds_needed(0.01, 0.01)
    assert seeds_needed(0.0, 0.01, error=0.01) is None, "no number of seeds makes up for too few examples"
    for seed in (0.004, 0.010):
        assert 0.74 <= planned_power(seed, SWEEPS, np.random.default_rng(5)) <= 0.9
