"""Scores of a sweep: one array per task, with the same examples for every run, and its bootstrap resamples."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.evaluation.statistics import Estimate, Floats, resampled_means
from tometune.reporting.sweep import SweepRun

METRICS = ("rouge1", "rouge2", "rougeL")
"""Columns of the table."""

EQUAL = 1e-9
"""Means this near are the same: the order of a sum shows beyond."""

SHOWN = 3
"""Ids named where two runs have other examples."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of a task's examples in one run."""

    path: Path
    ids: list[str]
    references: list[int]
    """Hash of each example's references: ids may be mere row numbers."""

    values: Floats
    """[examples, metrics]"""


@dataclass(frozen=True)
class SweepScores:
    """Scores of every run, paired by example."""

    columns: dict[str, int]
    """Column of a run, by its id; of the untuned model, by `before(model)`."""

    tasks: dict[str, Floats]
    """[examples, columns, metrics] by task."""

    notes: list[str]
    """Where runs do not agree on what the untuned model scores."""


def before(model: str) -> str:
    """Name the column of an untuned model."""
    return f"before {model}"


def load_scores(runs: Sequence[SweepRun]) -> SweepScores:
    """Read `eval/<stage>/<task>.jsonl` of all runs; the untuned model's are averaged over the runs that have them.

    Raises:
        UserError: a file is missing or broken, or runs were scored on other tasks or examples.
    """
    _check_tasks(runs)
    models: dict[str, list[SweepRun]] = {run.record["model"]["name"]: [] for run in runs}
    for run in runs:
        if "base" in run.record["eval"]:
            models[run.record["model"]["name"]].append(run)
    scored = {before(model): members for model, members in models.items() if members}
    names = [*(run.id for run in runs), *scored]
    tasks, untuned = {}, []
    for task in runs[0].record["eval"]["tuned"]["tasks"]:
        first = read_task(runs[0].folder / "eval" / "tuned" / f"{task}.jsonl")
        read = _reader(task, first)
        tuned = [first.values, *(read(run, "tuned") for run in runs[1:])]
        base = [np.stack([read(run, "base") for run in members]) for members in scored.values()]
        tasks[task] = np.stack([*tuned, *(values.mean(axis=0) for values in base)], axis=1)
        untuned.append([values.mean(axis=1) for values in base])
    notes = [_unequal(model, by_task) for model, by_task in zip(scored, zip(*untuned, strict=True), strict=True)]
    return SweepScores({name: number for number, name in enumerate(names)}, tasks, list(filter(None, notes)))


def _unequal(name: str, by_task: Sequence[Floats]) -> str | None:
    """Say where runs of one model gave other scores before training; `by_task` are [runs, metrics]."""
    runs = np.mean(by_task, axis=0)
    spread = np.ptp(by_task, axis=1)
    if not np.any(spread > EQUAL):
        return None
    least, most = runs[:, -1].min(), runs[:, -1].max()
    return (
        f"The row {name} is a mean over runs that do not agree on it (ROUGE-L {least:.4f} to {most:.4f}, on one task "
        f"up to {spread.max():.4f} apart): they were scored with other settings, versions or hardware."
    )


def _reader(task: str, first: TaskScores) -> Callable[[SweepRun, str], Floats]:
    """Return a function that reads a run's scores of a task in the order of the first run's examples."""
    order = dict(zip(first.ids, first.references, strict=True))

    def read(run: SweepRun, stage: str) -> Floats:
        found = read_task(run.folder / "eval" / stage / f"{task}.jsonl")
        place = {identifier: number for number, identifier in enumerate(found.ids)}
        if place.keys() != order.keys():
            raise UserError(_other_examples(first, found))
        changed = [name for name, number in place.items() if found.references[number] != order[name]]
        if changed:
            raise UserError(
                f"{found.path}: other references than in {first.path} for {_some(changed)}; the task's examples "
                "changed between the runs, so they cannot be paired: score one of them again"
            )
        return found.values[[place[identifier] for identifier in order]]

    return read


def read_task(path: Path) -> TaskScores:
    """Read one file of scores.

    Raises:
        UserError: it is missing, has no examples, or a line is broken; names the line.
    """
    again = "delete it and run the same command again, it is scored anew"
    ids, references, values = [], [], []
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:  # not splitlines(): it also splits at U+2028
            for line in lines:
                row = json.loads(line)
                scores = [float(row["scores"][metric]) for metric in METRICS]
                if not all(map(math.isfinite, scores)):
                    raise ValueError("a score is not a number")
                identifier, references_hash = str(row["id"]), hash(tuple(row.get("references", ())))
                values.append(scores)
                references.append(references_hash)
                ids.append(identifier)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, though the run is completed; score the run again") from None
    except KeyError as error:
        raise UserError(
            f"{path}:{len(ids) + 1}: has no {error}; the report needs ROUGE of every task ({again})"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}:{len(ids) + 1}: not a line of scores ({error}); {again}") from None
    if not ids:
        raise UserError(f"{path}: no examples; {again}")
    return TaskScores(path, ids, references, np.asarray(values))


def _check_tasks(runs: Sequence[SweepRun]) -> None:
    """Refuse runs that were scored on other tasks."""
    first = runs[0]
    wanted = set(first.record["eval"]["tuned"]["tasks"])
    for run in runs:
        differ = wanted ^ set(run.record["eval"]["tuned"]["tasks"])
        if differ:
            raise UserError(
                f"{run.folder}: scored on other tasks than {first.id} (not in both: {', '.join(sorted(differ))}); "
                "a mean over tasks would mean something else: score one of them again, or move it away"
            )


def _other_examples(first: TaskScores, found: TaskScores) -> str:
    """Say which examples two files do not share."""
    here, there = set(found.ids), set(first.ids)
    only = [
        f"only in {path}: {_some(sorted(ids))}"
        for path, ids in ((found.path, here - there), (first.path, there - here))
        if ids
    ]
    told = "; ".join(only) or "an id is there twice"
    return f"{found.path.stem}: runs with other examples cannot be paired; {told}; score one of them again"


def _some(names: Sequence[Any]) -> str:
    """Name the first few."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(str, names[:SHOWN]))}{more}"


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
