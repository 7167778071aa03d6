"""Simulated sweeps of several arms with a known truth: corrected tests, simultaneous intervals, equivalence, clusters.

`python -m tests.evaluation.families` prints the second table of docs/statistics.md.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.evaluation.simulation import EXAMPLES, LEVEL, TASKS, World, excluding, ours, sweeps
from tometune.evaluation.statistics import (
    combined_draws,
    detectable,
    holm,
    p_at_most,
    p_equivalent,
    simultaneous_intervals,
    two_sided,
)

ALPHA = 1 - LEVEL
ARM = 0.0021  # standard error over examples of an arm's mean: that of `World()` with 4 × 250 examples and three seeds
SIZE = 10  # examples per cluster


def draws_of(
    effects: Sequence[float],
    generator: np.random.Generator,
    seed: float = 0.010,
    seeds: int = 3,
    resamples: int = 1_000,
) -> list[np.ndarray]:
    """Return the draws of each arm minus a reference arm in one sweep; the true differences are `effects`.

    `seed` is the standard deviation of a run. The errors over examples are normal, and the arms share the reference.
    """
    arms = len(effects) + 1
    error = generator.normal(0, ARM, (arms, 1))
    runs = np.array([0.0, *effects])[:, None] + error + generator.normal(0, seed, (arms, seeds))
    examples = generator.normal(0, ARM, (arms, resamples))
    found = []
    for arm in range(1, arms):
        differences = runs[arm] - runs[0]
        found.append(combined_draws(differences.mean() + examples[arm] - examples[0], [differences]))
    return found


def families(
    effects: Sequence[float], count: int, generator: np.random.Generator, **options: float
) -> dict[str, float]:
    """Return shares of sweeps: any false finding, all differences covered, and of findings among true effects.

    Raises:
        AssertionError: an interval does not agree with its corrected p-value.
    """
    wrong = covered = 0
    hits = []
    for _ in range(count):
        draws = draws_of(effects, generator, **options)
        rejected = [p < ALPHA for p in holm([two_sided(each) for each in draws])]
        ends = simultaneous_intervals(draws, ALPHA)
        assert rejected == [low > 0 or high < 0 for low, high in ends]
        wrong += any(found for found, effect in zip(rejected, effects, strict=True) if effect == 0)
        covered += all(low <= effect <= high for (low, high), effect in zip(ends, effects, strict=True))
        hits += [found for found, effect in zip(rejected, effects, strict=True) if effect != 0]
    return {"any false": wrong / count, "all covered": covered / count, "found": float(np.mean(hits)) if hits else 0.0}


def equivalence(effects: Sequence[float], count: int, generator: np.random.Generator, **options: float) -> tuple:
    """Return the shares of sweeps in which any arm is called the same, and no worse, within 0.01."""
    same = no_worse = 0
    for _ in range(count):
        draws = draws_of(effects, generator, **options)
        same += min(holm([p_equivalent(each, 0.01) for each in draws])) < ALPHA
        no_worse += min(holm([p_at_most(each, -0.01) for each in draws])) < ALPHA
    return same / count, no_worse / count


def clustered(icc: float, count: int, generator: np.random.Generator, clusters: bool) -> float:
    """Return the share of sweeps without a difference whose interval excludes zero; 25 clusters of ten per task."""
    world = World(seed=0.002, taste=0.2, rest=0.05, icc=icc, cluster=SIZE)
    tasks = sweeps(world, count, generator)
    labels = [[str(number // SIZE) for number in range(len(task))] for task in tasks] if clusters else None
    return excluding(ours(tasks, 1_000, clusters=labels), 0.0) / count


def planned_power(seed: float, count: int, generator: np.random.Generator) -> float:
    """Return the share of sweeps in which the report finds the difference that is planned to be found in 80 %."""
    world = World(seed=seed)
    run = np.sqrt(2 * world.seed**2 + 2 * world.rest**2 / (TASKS * EXAMPLES))
    error = np.sqrt((world.taste**2 + 2 * world.rest**2 / world.seeds) / (TASKS * EXAMPLES))
    world = replace(world, effect=detectable(world.seeds, run, ALPHA, error=error))
    return float(np.mean([low > 0 for low, _ in ours(sweeps(world, count, generator), 1_000)]))


def main(count: int = 1_000) -> None:
    """Print the error rates."""
    generator = np.random.default_rng(11)
    for name, effects in {
        "six arms, none differs": [0.0] * 6,
        "six arms, two differ by 0.08": [0.08, -0.08, 0.0, 0.0, 0.0, 0.0],
        "six arms, all differ by 0.05": [0.05, -0.05] * 3,
        "six arms, all differ by 0.08": [0.08, -0.08] * 3,
    }.items():
        found = families(effects, count, generator)
        print(name, {key: f"{value:.1%}" for key, value in found.items()}, flush=True)
    quiet = {"seed": 0.002, "seeds": 5}
    for name, effects in {
        "equivalence, true difference 0.01": [0.01],
        "equivalence, true difference -0.01": [-0.01],
        "equivalence, six arms at -0.01": [-0.01] * 6,
        "equivalence, true difference 0": [0.0],
    }.items():
        for options in ({}, quiet):
            same, no_worse = equivalence(effects, count, generator, **options)
            print(name, options, f"same {same:.1%}, no worse {no_worse:.1%}", flush=True)
    for seed in (0.002, 0.004, 0.010):
        shares = [planned_power(seed, 200, generator) for _ in range(count // 200)]
        print(f"planned power of 80%, sd {seed}: {np.mean(shares):.1%}", flush=True)
    for icc in (0.0, 0.3):
        for clusters in (False, True):
            shares = [clustered(icc, 200, generator, clusters) for _ in range(count // 200)]
            print(f"icc {icc}, clusters {clusters}: {np.mean(shares):.1%}", flush=True)


if __name__ == "__main__":
    main()
