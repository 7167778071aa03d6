"""The published table that this project set out to reproduce, and the comparison that its numbers allow.

Llama-3.2-3B-Instruct in 4 bits, LoRA through Unsloth, four evaluation tasks, three runs each: mean, then standard
deviation.
"""

from dataclasses import dataclass
from typing import Any

from tometune.evaluation.statistics import seeds_needed
from tometune.reporting.scores import ROUGE

RUNS = 3


@dataclass(frozen=True)
class PublishedRow:
    """One row of the published table."""

    data: str
    rows: int
    mean: tuple[float, float, float]
    """ROUGE-1, -2, -L."""

    std: tuple[float, float, float]
    """Over three runs."""


PUBLISHED = (
    PublishedRow("100k: FineTome-100k", 100_000, (0.407, 0.163, 0.300), (0.012, 0.003, 0.007)),
    PublishedRow("200k: + 100k rows of The-Tome", 200_000, (0.402, 0.157, 0.301), (0.019, 0.020, 0.009)),
    PublishedRow("300k: + 200k rows of The-Tome", 300_000, (0.397, 0.146, 0.304), (0.019, 0.011, 0.006)),
)


def published_comparisons(confidence: float) -> list[dict[str, Any]]:
    """Return 300k - 100k of the published table with Welch's interval, from means and deviations alone."""
    from scipy.stats import ttest_ind_from_stats

    first, last = PUBLISHED[0], PUBLISHED[-1]
    found = []
    for number, metric in enumerate(ROUGE):
        test = ttest_ind_from_stats(
            *(last.mean[number], last.std[number], RUNS),
            *(first.mean[number], first.std[number], RUNS),
            equal_var=False,
        )
        delta = last.mean[number] - first.mean[number]
        squares = last.std[number] ** 2, first.std[number] ** 2
        low, high = _welch(delta, squares, confidence)
        needed = seeds_needed(sum(squares) ** 0.5, 0.01, alpha=1 - confidence, paired=False)
        values = {"delta": delta, "ci_low": low, "ci_high": high, "p": float(test.pvalue), "seeds_needed": needed}
        found.append({"metric": metric, **values})
    return found


def _welch(delta: float, squares: tuple[float, float], confidence: float) -> tuple[float, float]:
    """Return Welch's interval for a difference of two means over `RUNS` values with these variances."""
    from scipy.stats import t

    freedom = (RUNS - 1) * sum(squares) ** 2 / sum(square**2 for square in squares)
    half = float(t.ppf((1 + confidence) / 2, freedom)) * (sum(squares) / RUNS) ** 0.5
    return delta - half, delta + half
