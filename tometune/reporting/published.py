"""The published table that this project set out to reproduce, and the comparison that its numbers allow.

Llama-3.2-3B-Instruct in 4 bits, LoRA through Unsloth, four evaluation tasks, three runs each: mean, then standard
deviation.
"""

from typing import Any, NamedTuple

from tometune.evaluation.statistics import seeds_needed
from tometune.reporting.scores import ROUGE

RUNS = 3


class PublishedRow(NamedTuple):
    """One row of the published table: means and deviations over three runs of ROUGE-1, -2 and -L."""

    data: str
    rows: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PUBLISHED = (
    PublishedRow("100k: FineTome-100k", 100_000, (0.407, 0.163, 0.300), (0.012, 0.003, 0.007)),
    PublishedRow("200k: + 100k rows of The-Tome", 200_000, (0.402, 0.157, 0.301), (0.019, 0.020, 0.009)),
    PublishedRow("300k: + 200k rows of The-Tome", 300_000, (0.397, 0.146, 0.304), (0.019, 0.011, 0.006)),
)


def published_comparisons(confidence: float) -> list[dict[str, Any]]:
    """Return 300k - 100k of the published table with Welch's interval, from means and deviations alone."""
    from scipy.stats import t, ttest_ind_from_stats

    first, last = PUBLISHED[0], PUBLISHED[-1]
    found = []
    for metric, *numbers in zip(ROUGE, last.mean, last.std, first.mean, first.std, strict=True):
        a, a_sd, b, b_sd = numbers
        p = float(ttest_ind_from_stats(a, a_sd, RUNS, b, b_sd, RUNS, equal_var=False).pvalue)
        variances = a_sd**2, b_sd**2
        freedom = (RUNS - 1) * sum(variances) ** 2 / sum(variance**2 for variance in variances)
        half = float(t.ppf((1 + confidence) / 2, freedom)) * (sum(variances) / RUNS) ** 0.5
        needed = seeds_needed(sum(variances) ** 0.5, 0.01, alpha=1 - confidence, paired=False)
        interval = {"ci_low": a - b - half, "ci_high": a - b + half}
        found.append({"metric": metric, "delta": a - b, **interval, "p": p, "seeds_needed": needed})
    return found
