"""The scores of a sweep, resampled once for everything that is asked of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tometune.evaluation.comparison import Estimate, Floats, resampled_means
from tometune.reporting.scores import METRICS, SweepScores

DIGITS = 6
"""Decimals in table.json; beyond them the order of a sum shows."""


@dataclass(frozen=True)
class Resampled:
    """Scores of every column, as they are and with other examples."""

    columns: dict[str, int]
    means: Floats
    """[tasks, columns, metrics]"""

    draws: Floats
    """[tasks, resamples, columns, metrics]"""

    confidence: float

    def runs(self, names: Sequence[str], metric: int, task: int | None = None) -> Floats:
        """Return each run's score, [runs]: on one task, or the plain mean over tasks."""
        means = self.means.mean(axis=0) if task is None else self.means[task]
        found: Floats = means[[self.columns[name] for name in names], metric]
        return found

    def examples(self, names: Sequence[str], metric: int, task: int | None = None) -> Floats:
        """Return the mean score over these runs with other examples, [resamples]."""
        draws = self.draws[:, :, [self.columns[name] for name in names], metric].mean(axis=2)
        found: Floats = draws.mean(axis=0) if task is None else draws[task]
        return found


def resample(scores: SweepScores, resamples: int, confidence: float) -> Resampled:
    """Resample the examples of all tasks, once and for all runs together."""
    tasks = list(scores.tasks.values())
    draws = resampled_means([task.reshape(len(task), -1) for task in tasks], resamples)
    shape = (len(tasks), resamples, len(scores.columns), len(METRICS))
    return Resampled(scores.columns, np.stack([task.mean(axis=0) for task in tasks]), draws.reshape(shape), confidence)


def interval(result: Estimate) -> dict[str, float | None]:
    """Return the ends of an interval by the names of table.json."""
    return {"ci_low": rounded(result.low), "ci_high": rounded(result.high)}


def rounded(value: float | None) -> float | None:
    """Round for table.json."""
    return None if value is None else round(float(value), DIGITS) + 0.0
