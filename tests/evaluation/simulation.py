"""Simulated sweeps with a known truth, judged by several methods.

`python -m tests.evaluation.simulation` prints the table of docs/statistics.md.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from tometune.evaluation.statistics import estimate, resampled_means

TASKS, EXAMPLES = 4, 250
LEVEL = 0.95


@dataclass(frozen=True)
class World:
    """How scores are generated: standard deviations, and the true difference between the arms."""

    seed: float = 0.010  # of each run (seed × arm), as in the published table
    example: float = 0.20  # difficulty of an example, shared by all runs
    taste: float = 0.05  # preference of an example for one of the arms, shared by its seeds
    rest: float = 0.10  # noise of one example in one run
    effect: float = 0.0
    seeds: int = 3
    icc: float = 0.0  # intraclass correlation of the taste within clusters of neighbouring examples
    cluster: int = 1  # examples per cluster


def sweeps(world: World, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return, for each task, [examples, count, arms, seeds]: arm 1 is better by the effect."""
    runs = generator.normal(0, world.seed, (count, 2, world.seeds))
    runs[:, 1] += world.effect
    tasks = []
    for _ in range(TASKS):
        scores = 0.4 + runs + generator.normal(0, world.example, (EXAMPLES, count, 1, 1))
        taste = generator.normal(0, world.taste / np.sqrt(2), (EXAMPLES, count, 2, 1))
        if world.icc:
            shared = generator.normal(0, world.taste / np.sqrt(2), (EXAMPLES // world.cluster, count, 2, 1))
            taste = np.sqrt(1 - world.icc) * taste + np.sqrt(world.icc) * np.repeat(shared, world.cluster, axis=0)
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


def main(rounds: int = 10, count: int = 200) -> None:
    """Print how often each method finds an effect, in worlds without and with one."""
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
            found = sum(excluding(method(sweeps(world, count, generator)), 0.0) for _ in range(rounds))
            cells.append(f"{found / rounds / count:.1%}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
