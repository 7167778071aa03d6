"""Simulated tables and controls with a known truth: how often an explanation is wrong.

`python -m tests.reporting.simulated_explanations` prints the last table of error rates in docs/statistics.md.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tests.evaluation.simulation import ARM
from tometune.evaluation.statistics import combined_draws, holm, two_sided
from tometune.reporting.explanation import _verdict, _verdict_on_sources

TABLE = {"interval": {"confidence": 0.95}}
MARGIN = 0.02
PLANTED: dict[str, tuple[float, Sequence[float]]] = {
    "steps explain all of it": (-0.08, [0.0]),
    "steps explain a half": (-0.08, [-0.04]),
    "steps explain nothing": (-0.08, [-0.08]),
    "no difference": (0.0, [0.0]),
    "one source explains all": (-0.08, [-0.08] + 6 * [0.0]),
    "no source explains it": (-0.08, 7 * [0.0]),
}
"""Differences of the large mix to the small one: in the table, and with the same tokens, or of each source."""


def comparisons(effects: Sequence[float], error: float, generator: np.random.Generator, seed: float) -> list[dict]:
    """Return what a report says of comparisons with true differences, as in table.json, after Holm's correction.

    `seed` is the standard deviation of a run, of which there are three per cell; `error` is the error over examples
    that the comparisons share.
    """
    found = []
    for effect in effects:
        differences = effect + error + generator.normal(0, np.sqrt(2) * seed, 3)
        examples = generator.normal(0, np.sqrt(2) * ARM, 1_000)
        draws = combined_draws(differences.mean() + examples, [differences])
        low, high = np.quantile(draws, [0.025, 0.975])
        found.append({"delta": differences.mean(), "ci_low": low, "ci_high": high, "p": two_sided(draws)})
    adjusted = holm([entry["p"] for entry in found])
    return [{**entry, "p_holm": p} for entry, p in zip(found, adjusted, strict=True)]


def verdicts(
    planted: tuple[float, Sequence[float]], count: int, generator: np.random.Generator, shared: bool, seed: float
) -> Mapping[str, float]:
    """Return the share of sweeps with each verdict; those whose difference is not significant have none.

    With `shared`, table and control have the same error over examples, which they are scored on, else independent ones.
    """
    found: Counter[str] = Counter()
    for _ in range(count):
        errors = generator.normal(0, np.sqrt(2) * ARM, 2)
        (own,) = comparisons([planted[0]], errors[0], generator, seed)
        if own["p_holm"] >= 0.05:
            continue
        effects = comparisons(planted[1], errors[0 if shared else 1], generator, seed)
        if len(effects) == 1:
            found[_verdict(own, effects[0], MARGIN)] += 1
        else:
            by_name = {f"source {number}": entry for number, entry in enumerate(effects)}
            found[_verdict_on_sources(own, by_name, TABLE)[0]] += 1
    return {name: number / count for name, number in found.items()}


def main(count: int = 1_000) -> None:
    """Print the shares of all verdicts."""
    names = ("explained", "part", "not explained", "undecided")
    print(f"| truth | sd | errors | {' | '.join(names)} |")
    for name, planted in PLANTED.items():
        for seed in (0.010, 0.004):
            for shared in (False, True):
                found = verdicts(planted, count, np.random.default_rng(3), shared, seed)
                texts = " | ".join(f"{found.get(verdict, 0):.1%}" for verdict in names)
                print(f"| {name} | {seed} | {'shared' if shared else 'independent'} | {texts} |", flush=True)


if __name__ == "__main__":
    main()
