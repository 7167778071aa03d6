"""The scores of a sweep: one array per task with the same examples for every run, and its bootstrap resamples."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.evaluation.statistics import Floats, resampled_means
from tometune.reporting.sweep import SweepRun

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Metrics of every run, and those of the published table."""

TOLERANCE = 1e-9
"""Means closer than this are equal: sums in another order differ by less."""

LISTED = 3
"""Ids listed in an error about differing examples."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of a task's examples in one run."""

    path: Path
    metrics: list[str]
    """In the order of the file."""

    ids: list[str]
    references: list[int]
    """Hash of each example's references, because ids may be mere row numbers."""

    values: Floats
    """[examples, metrics]"""

    def select(self, metrics: Sequence[str], order: Iterable[str]) -> Floats:
        """Return [examples, metrics] for these metrics, with the examples in this order."""
        place = {identifier: number for number, identifier in enumerate(self.ids)}
        rows, columns = [place[identifier] for identifier in order], [self.metrics.index(name) for name in metrics]
        return self.values[np.ix_(rows, columns)]


@dataclass(frozen=True)
class SweepScores:
    """Scores of every run, paired by example."""

    metrics: tuple[str, ...]
    """ROUGE, then every other metric that all tasks of all runs have."""

    columns: dict[str, int]
    """Column of each run by its id, and of each base model by `base_column(model)`."""

    tasks: dict[str, Floats]
    """[examples, columns, metrics] by task."""

    notes: list[str]
    """Where runs do not agree on the base model's scores."""

    def resample(self, resamples: int, confidence: float) -> "Resampled":
        """Resample the examples of all tasks, once for all runs."""
        tasks = list(self.tasks.values())
        draws = resampled_means([task.reshape(len(task), -1) for task in tasks], resamples)
        shape = (len(tasks), resamples, len(self.columns), len(self.metrics))
        means = np.stack([task.mean(axis=0) for task in tasks])
        return Resampled(self.metrics, self.columns, means, draws.reshape(shape), confidence)


@dataclass(frozen=True)
class Resampled:
    """Mean scores of every column, on the examples themselves and on resampled ones."""

    metrics: tuple[str, ...]
    columns: dict[str, int]
    means: Floats
    """[tasks, columns, metrics]"""

    draws: Floats
    """[tasks, resamples, columns, metrics]"""

    confidence: float

    def runs(self, names: Sequence[str], metric: int, task: int | None = None) -> Floats:
        """Return the score of each run, [runs]: on one task, or the plain mean over tasks."""
        means = self.means.mean(axis=0) if task is None else self.means[task]
        found: Floats = means[[self.columns[name] for name in names], metric]
        return found

    def examples(self, names: Sequence[str], metric: int, task: int | None = None) -> Floats:
        """Return the mean score of these runs on resampled examples, [resamples]."""
        draws = self.draws[:, :, [self.columns[name] for name in names], metric].mean(axis=2)
        found: Floats = draws.mean(axis=0) if task is None else draws[task]
        return found


def base_column(model: str) -> str:
    """Return the name of a base model's column."""
    return f"before {model}"


def load_scores(runs: Sequence[SweepRun]) -> SweepScores:
    """Read `eval/<stage>/<task>.jsonl` of all runs; base scores are averaged over the runs that have them.

    Raises:
        UserError: a file is missing or broken, or runs were scored on different tasks or examples.
    """
    _check_tasks(runs)
    models: dict[str, list[SweepRun]] = {run.record["model"]["name"]: [] for run in runs}
    for run in runs:
        if "base" in run.record["eval"]:
            models[run.record["model"]["name"]].append(run)
    scored = {base_column(model): members for model, members in models.items() if members}
    names = [*(run.id for run in runs), *scored]
    read = {task: _read_stages(runs, task) for task in runs[0].record["eval"]["tuned"]["tasks"]}
    files = [found for stages in read.values() for found in stages.values()]
    metrics = tuple(name for name in files[0].metrics if all(name in found.metrics for found in files))
    tasks, spreads = {}, []
    for task, stages in read.items():
        order = stages["tuned", runs[0].id].ids
        tuned = [stages["tuned", run.id].select(metrics, order) for run in runs]
        base = [
            np.stack([stages["base", run.id].select(metrics, order) for run in members]) for members in scored.values()
        ]
        tasks[task] = np.stack([*tuned, *(values.mean(axis=0) for values in base)], axis=1)
        spreads.append([values.mean(axis=1) for values in base])
    rouge_l = metrics.index("rougeL")
    notes = [
        _disagreement(name, by_task, rouge_l) for name, by_task in zip(scored, zip(*spreads, strict=True), strict=True)
    ]
    return SweepScores(metrics, {name: number for number, name in enumerate(names)}, tasks, list(filter(None, notes)))


def _read_stages(runs: Sequence[SweepRun], task: str) -> dict[tuple[str, str], TaskScores]:
    """Read a task's scores by stage and run, and check that all have the same examples."""
    found = {
        (stage, run.id): read_task(run.folder / "eval" / stage / f"{task}.jsonl")
        for stage in ("tuned", "base")
        for run in runs
        if stage in run.record["eval"]
    }
    first = found["tuned", runs[0].id]
    references = dict(zip(first.ids, first.references, strict=True))
    for other in found.values():
        if set(other.ids) != references.keys() or len(set(other.ids)) != len(other.ids):
            raise UserError(_other_examples(first, other))
        changed = [name for name, number in zip(other.ids, other.references, strict=True) if number != references[name]]
        if changed:
            raise UserError(
                f"{other.path}: other references than in {first.path} for {_some(changed)}; the task's examples "
                "changed between the runs, so they cannot be paired: score one of them again"
            )
    return found


def _disagreement(name: str, by_task: Sequence[Floats], rouge_l: int) -> str | None:
    """Return a note if runs scored the same base model differently; `by_task` holds [runs, metrics]."""
    spread = np.ptp(by_task, axis=1)
    if not np.any(spread > TOLERANCE):
        return None
    runs = np.mean(by_task, axis=0)[:, rouge_l]
    return (
        f"Row {name}: the runs disagree on this score (ROUGE-L {runs.min():.4f} to {runs.max():.4f}, up to "
        f"{spread.max():.4f} on one task), so the row is a mean. They were scored with different settings, versions or "
        "hardware."
    )


def read_task(path: Path) -> TaskScores:
    """Read one file of scores.

    Raises:
        UserError: it is missing, has no examples, or a line is broken; names the line.
    """
    fix = "delete it and run the same command again to score it again"
    metrics: list[str] = []
    ids, references, values = [], [], []
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:  # not splitlines(): it also splits at U+2028
            for line in lines:
                row = json.loads(line)
                metrics = metrics or [*ROUGE, *(name for name in row["scores"] if name not in ROUGE)]
                scores = [float(row["scores"][metric]) for metric in metrics]
                if not all(map(math.isfinite, scores)):
                    raise ValueError("a score is not a number")
                identifier, references_hash = str(row["id"]), hash(tuple(row.get("references", ())))
                values.append(scores)
                references.append(references_hash)
                ids.append(identifier)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, although the run is completed; score the run again") from None
    except KeyError as error:
        raise UserError(f"{path}:{len(ids) + 1}: has no {error}, which the report needs; {fix}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}:{len(ids) + 1}: not a line of scores ({error}); {fix}") from None
    if not ids:
        raise UserError(f"{path}: no examples; {fix}")
    return TaskScores(path, metrics, ids, references, np.asarray(values))


def _check_tasks(runs: Sequence[SweepRun]) -> None:
    """Reject runs that were scored on different tasks."""
    first = runs[0]
    wanted = set(first.record["eval"]["tuned"]["tasks"])
    for run in runs:
        differ = wanted ^ set(run.record["eval"]["tuned"]["tasks"])
        if differ:
            raise UserError(
                f"{run.folder}: scored on other tasks than {first.id} (not in both: {', '.join(sorted(differ))}), "
                "so means over tasks cannot be compared; score one of them again, or move it away"
            )


def _other_examples(first: TaskScores, found: TaskScores) -> str:
    """Return the error about examples that two files do not share."""
    here, there = set(found.ids), set(first.ids)
    only = [
        f"only in {path}: {_some(sorted(ids))}"
        for path, ids in ((found.path, here - there), (first.path, there - here))
        if ids
    ]
    problem = "; ".join(only) or "an id occurs twice"
    return f"{found.path.stem}: runs with different examples cannot be paired; {problem}; score one of them again"


def _some(names: Sequence[Any]) -> str:
    """List the first few names."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(map(str, names[:LISTED]))}{more}"
