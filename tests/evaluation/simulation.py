"""Simulated sweeps with a known truth: two arms judged by several methods, and several arms against one.

`python -m tests.evaluation.simulation` prints the error rates of docs/statistics.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tometune.evaluation.statistics import (
    combined_draws,
    detectable,
    estimate,
    holm,
    p_at_most,
    p_equivalent,
    resampled_means,
    simultaneous_intervals,
    two_sided,
)

TASKS, EXAMPLES = 4, 250
LEVEL = 0.95
ALPHA = 1 - LEVEL
ARM = 0.0021  # standard error over examples of an arm's mean: that of `World()` with 4 × 250 examples and three seeds
SIZE = 10  # examples per cluster


@dataclass(frozen=True)
class World:
    """How scores are generated: standard deviations, and the true difference between the arms."""

    seed: float = 0.010  # of each run (seed × arm), as in the published table
    example: float = 0.20  # difficulty of an example, shared by all runs
    taste: float = 0.05  # preference of an example for one of the arms, shared by its seeds
    rest: float = 0.10  # noise of one example in one run
    effect: float = 0.0
    seeds: int = 3
    icc: float = 0.0  # intraclass correlation of the taste within clusters of SIZE neighbouring examples


def sweeps(world: World, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return, for each task, [examples, count, arms, seeds]: arm 1 is better by the effect."""
    runs = generator.normal(0, world.seed, (count, 2, world.seeds))
    runs[:, 1] += world.effect
    tasks = []
    for _ in range(TASKS):
        scores = 0.4 + runs + generator.normal(0, world.example, (EXAMPLES, count, 1, 1))
        taste = generator.normal(0, world.taste / np.sqrt(2), (EXAMPLES, count, 2, 1))
        if world.icc:
            shared = generator.normal(0, world.taste / np.sqrt(2), (EXAMPLES // SIZE, count, 2, 1))
            taste = np.sqrt(1 - world.icc) * taste + np.sqrt(world.icc) * np.repeat(shared, SIZE, axis=0)
        scores = scores + taste
        tasks.append(scores + generator.normal(0, world.rest, (EXAMPLES, count, 2, world.seeds)))
    return tasks


def resample(tasks: list[np.ndarray], resamples: int, clusters: list[list[str]] | None = None) -> np.ndarray:
    """Return [resamples, count, arms, seeds]: mean scores on resampled examples, or on resampled clusters."""
    draws = resampled_means([task.reshape(len(task), -1) for task in tasks], resamples, clusters).mean(axis=0)
    return draws.reshape(resamples, *tasks[0].shape[1:])


def ours(
    tasks: list[np.ndarray], resamples: int, paired: bool = True, clusters: list[list[str]] | None = None
) -> list[tuple[float, float]]:
    """Return the intervals of the report, one per sweep."""
    draws = resample(tasks, resamples, clusters).mean(axis=3)
    found = []
    for number, (before, after) in enumerate(np.mean([task.mean(axis=0) for task in tasks], axis=0)):
        varies = [after - before] if paired else [after, before]
        examples = draws[:, number, 1] - draws[:, number, 0]
        result = estimate(float((after - before).mean()), examples, varies, LEVEL)
        found.append((result.low, result.high))
    return found


def plain(tasks: list[np.ndarray], resamples: int, expand: bool = False) -> list[tuple[float, float]]:
    """Return intervals of the plain paired hierarchical bootstrap: three seeds drawn from three.

    With `expand`, deviations over seeds are stretched by sqrt(k / (k - 1)) t / z (Hesterberg 2015, arXiv:1411.5279).
    """
    draws, seeds = resample(tasks, resamples), tasks[0].shape[3]
    differences = draws[:, :, 1] - draws[:, :, 0]
    chosen = np.random.default_rng(1).integers(0, seeds, (resamples, 1, seeds))
    drawn = np.take_along_axis(differences, np.broadcast_to(chosen, differences.shape), axis=2).mean(axis=2)
    if expand:
        factor = np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975)
        drawn = differences.mean(axis=2) + factor * (drawn - differences.mean(axis=2))
    return [tuple(pair) for pair in np.quantile(drawn, [0.025, 0.975], axis=0).T]


def t_intervals(tasks: list[np.ndarray], over: str) -> list[tuple[float, float]]:
    """Return intervals of a t test over `seeds`, over `examples`, or over `both` as Welch and Satterthwaite do."""
    runs = np.mean([task.mean(axis=0) for task in tasks], axis=0)
    differences = runs[:, 1] - runs[:, 0]
    k = differences.shape[1]
    seeds = differences.var(axis=1, ddof=1) / k
    by_example = [(task[:, :, 1] - task[:, :, 0]).mean(axis=2) for task in tasks]
    examples = sum(task.var(axis=0, ddof=1) / len(task) for task in by_example) / len(tasks) ** 2
    both = (seeds + examples) ** 2 / (seeds**2 / (k - 1) + examples**2 / (TASKS * (EXAMPLES - 1)))
    of_test = {"seeds": (k - 1, seeds), "examples": (np.inf, examples), "both": (both, seeds + examples)}
    freedom, variance = of_test[over]
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    middle = differences.mean(axis=1)
    return list(zip(middle - half, middle + half, strict=True))


METHODS = {
    "ours": lambda tasks: ours(tasks, 2_000),
    "ours, seeds not paired": lambda tasks: ours(tasks, 2_000, paired=False),
    "plain hierarchical bootstrap": lambda tasks: plain(tasks, 2_000),
    "plain, expanded": lambda tasks: plain(tasks, 2_000, expand=True),
    "Satterthwaite t": lambda tasks: t_intervals(tasks, "both"),
    "t over seeds alone": lambda tasks: t_intervals(tasks, "seeds"),
    "examples alone": lambda tasks: t_intervals(tasks, "examples"),
}


def excluding(intervals: list[tuple[float, float]], truth: float) -> int:
    """Count the intervals that do not contain the truth."""
    return sum(not low <= truth <= high for low, high in intervals)


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
    world = World(seed=0.002, taste=0.2, rest=0.05, icc=icc)
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


def main() -> None:
    """Print how often each method finds an effect, in worlds without and with one, then the other error rates."""
    worlds = {
        "null, sd 0.010": World(),
        "null, sd 0.020": World(seed=0.020),
        "null, sd 0.002": World(seed=0.002),
        "null, sd 0.010, 5 seeds": World(seeds=5),
        "effect 0.05, sd 0.010": World(effect=0.05),
        "effect 0.08, sd 0.010": World(effect=0.08),
    }
    print("| method | " + " | ".join(worlds) + " |")
    print("|---|" + "---:|" * len(worlds))
    for name, method in METHODS.items():
        cells = []
        for world in worlds.values():
            generator = np.random.default_rng(7)
            found = sum(excluding(method(sweeps(world, 200, generator)), 0.0) for _ in range(10))
            cells.append(f"{found / 2_000:.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    generator = np.random.default_rng(11)
    for name, effects in {
        "six arms, none differs": [0.0] * 6,
        "six arms, two differ by 0.08": [0.08, -0.08, 0.0, 0.0, 0.0, 0.0],
        "six arms, all differ by 0.05": [0.05, -0.05] * 3,
        "six arms, all differ by 0.08": [0.08, -0.08] * 3,
    }.items():
        found = families(effects, 1_000, generator)
        print(name, {key: f"{value:.1%}" for key, value in found.items()}, flush=True)
    quiet = {"seed": 0.002, "seeds": 5}
    for name, effects in {
        "equivalence, true difference 0.01": [0.01],
        "equivalence, true difference -0.01": [-0.01],
        "equivalence, six arms at -0.01": [-0.01] * 6,
        "equivalence, true difference 0": [0.0],
    }.items():
        for options in ({}, quiet):
            same, no_worse = equivalence(effects, 1_000, generator, **options)
            print(name, options, f"same {same:.1%}, no worse {no_worse:.1%}", flush=True)
    for seed in (0.002, 0.004, 0.010):
        shares = [planned_power(seed, 200, generator) for _ in range(5)]
        print(f"planned power of 80%, sd {seed}: {np.mean(shares):.1%}", flush=True)
    for icc in (0.0, 0.3):
        for clusters in (False, True):
            shares = [clustered(icc, 200, generator, clusters) for _ in range(5)]
            print(f"icc {icc}, clusters {clusters}: {np.mean(shares):.1%}", flush=True)


if __name__ == "__main__":
    main()
