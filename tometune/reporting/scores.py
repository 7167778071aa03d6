"""The scores of a sweep: one array per task with the same examples for every run, and its bootstrap resamples."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.evaluation.statistics import Floats, resampled_means
from tometune.reporting.sweep import SweepRun

ROUGE = ("rouge1", "rouge2", "rougeL")  # metrics of every run, and those of the published table
TOLERANCE = 1e-9  # means closer than this are equal: sums in another order differ by less
LISTED = 3  # ids listed in an error about differing examples


@dataclass(frozen=True)
class TaskScores:
    """Scores of a task's examples in one run."""

    path: Path
    metrics: list[str]  # in the order of the file
    ids: list[str]
    references: list[int]  # hash of each example's references, because ids may be mere row numbers
    values: Floats  # [examples, metrics]

    def select(self, metrics: Sequence[str], order: Sequence[str]) -> Floats:
        """Return [examples, metrics] for these metrics, with the examples in this order."""
        line = {identifier: number for number, identifier in enumerate(self.ids)}
        columns = [self.metrics.index(name) for name in metrics]
        return self.values[np.ix_([line[identifier] for identifier in order], columns)]


@dataclass(frozen=True)
class SweepScores:
    """Scores of every run, paired by example."""

    metrics: tuple[str, ...]  # ROUGE, then every other metric that all tasks of all runs have
    columns: dict[str, int]  # column of each run by its id, and of each base model by `base_column(model)`
    tasks: dict[str, Floats]  # [examples, columns, metrics] by task
    notes: list[str]  # where runs do not agree on the base model's scores

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
    means: Floats  # [tasks, columns, metrics]
    draws: Floats  # [tasks, resamples, columns, metrics]
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
    names = list(runs[0].record["eval"]["tuned"]["tasks"])
    for run in runs:
        differ = set(names) ^ set(run.record["eval"]["tuned"]["tasks"])
        if differ:
            raise UserError(
                f"{run.folder}: scored on other tasks than {runs[0].id} (not in both: {', '.join(sorted(differ))}), "
                "so means over tasks cannot be compared; score one of them again, or move it away"
            )
    scored: dict[str, list[SweepRun]] = {}
    for run in runs:
        if "base" in run.record["eval"]:
            scored.setdefault(base_column(run.model), []).append(run)
    read = {task: _read_stages(runs, task) for task in names}
    files = [found for stages in read.values() for found in stages.values()]
    metrics = tuple(name for name in files[0].metrics if all(name in found.metrics for found in files))
    tasks = {}
    spreads: dict[str, list[Floats]] = {name: [] for name in scored}  # [runs, metrics] for each task
    for task, stages in read.items():
        order = stages["tuned", runs[0].id].ids
        tuned = [stages["tuned", run.id].select(metrics, order) for run in runs]
        base = {
            name: np.stack([stages["base", run.id].select(metrics, order) for run in members])
            for name, members in scored.items()
        }
        tasks[task] = np.stack([*tuned, *(values.mean(axis=0) for values in base.values())], axis=1)
        for name, values in base.items():
            spreads[name].append(values.mean(axis=1))
    notes = []
    for name, means in spreads.items():
        spread = np.ptp(means, axis=1)
        if np.any(spread > TOLERANCE):
            rouge_l = np.mean(means, axis=0)[:, metrics.index("rougeL")]
            notes.append(
                f"Row {name}: the runs disagree on this score (ROUGE-L {rouge_l.min():.4f} to {rouge_l.max():.4f}, up "
                f"to {spread.max():.4f} on one task), so the row is a mean. They were scored with different settings, "
                "versions or hardware."
            )
    columns = {name: number for number, name in enumerate([*(run.id for run in runs), *scored])}
    return SweepScores(metrics, columns, tasks, notes)


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
        here, there = set(other.ids), references.keys()
        if here != there or len(here) != len(other.ids):
            only = [
                f"only in {path}: {_some(sorted(ids))}"
                for path, ids in ((other.path, here - there), (first.path, there - here))
                if ids
            ]
            problem = "; ".join(only) or "an id occurs twice"
            raise UserError(
                f"{task}: runs with different examples cannot be paired; {problem}; score one of them again"
            )
        changed = [name for name, number in zip(other.ids, other.references, strict=True) if number != references[name]]
        if changed:
            raise UserError(
                f"{other.path}: other references than in {first.path} for {_some(changed)}; the task's examples "
                "changed between the runs, so they cannot be paired: score one of them again"
            )
    return found


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
                ids.append(identifier)  # last, because an error counts the lines by it
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, although the run is completed; score the run again") from None
    except KeyError as error:
        raise UserError(f"{path}:{len(ids) + 1}: has no {error}, which the report needs; {fix}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}:{len(ids) + 1}: not a line of scores ({error}); {fix}") from None
    if not ids:
        raise UserError(f"{path}: no examples; {fix}")
    return TaskScores(path, metrics, ids, references, np.asarray(values))


def _some(names: Sequence[Any]) -> str:
    """List the first few names."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(map(str, names[:LISTED]))}{more}"
