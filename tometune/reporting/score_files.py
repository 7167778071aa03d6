"""Reads the score files of a sweep's runs and pairs them by example."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tometune.common.errors import UserError, some
from tometune.config.eval import HARNESS, HELD_OUT
from tometune.evaluation.metrics import as_rouge_words, averaged, needs_unicode, score
from tometune.evaluation.results import read_scores
from tometune.evaluation.statistics import Floats, resampled_means
from tometune.reporting.sweep import SweepRun
from tometune.runs.run import REPEAT

ROUGE = ("rouge1", "rouge2", "rougeL")  # metrics of every run, and those of the published table
TOLERANCE = 1e-9  # means that differ by less are equal: the order of a sum changes that much
LISTED = 3  # ids listed in an error about differing examples

# Columns of a file next to its metrics: a hash of the references, because ids may be row numbers, which identify
# nothing; the cluster (`eval.tasks.X.cluster`) and the source of a held-out row, None where there is none.
REFERENCES, CLUSTER, SOURCE = "example/references", "example/cluster", "example/source"

Files = dict[tuple[str, str], pd.DataFrame]  # examples of one task by id, by (stage, run id); see `read_task`


@dataclass(frozen=True)
class Scores:
    """Mean scores by column, on the examples and on resamples of them (the same resamples for all columns).

    There is one column per run, named by its id, and one per base model, named by `base_column(model)`. Where runs
    disagree on the scores of a base model, each also has a column with its own, `base_column(run id)`.
    """

    by_task: list[str]  # metrics: ROUGE, then every other metric that all tasks of all runs have
    columns: list[str]
    examples: dict[str, int]  # their number by task
    sources: dict[str, int]  # the same by source of held-out rows, e.g. `held_out_pool/math`; they count as tasks, too
    means: dict[tuple[str, str], Floats]  # [columns] by task and metric
    resampled: dict[tuple[str, str], Floats]  # [resamples, columns] by task and metric
    notes: list[str]  # on base models on whose scores the runs disagree, and on metrics that are left out
    clusters: dict[str, int]  # their number, for tasks whose examples are clustered
    harness: list[str]  # metrics of tasks of `eval.harness`, e.g. `acc/harness_arc_easy`; these are no tasks here

    @property
    def metrics(self) -> list[str]:
        """What cells are compared by: the means over tasks, and `nll` on the held-out rows of base and pool."""
        held_out = [task for task in self.examples if task.startswith(HELD_OUT) and len(self.examples) > 1]
        return [*self.by_task, *(f"nll/{task}" for task in held_out if "nll" in self.by_task), *self.harness]

    def of_runs(self, names: Sequence[str], metric: str, task: str | None = None) -> Floats:
        """Return the score of each run, [runs]: on one task (also `nll/TASK`), or the plain mean over tasks."""
        places = [self.columns.index(name) for name in names]
        found: Floats = np.mean([self.means[key][places] for key in self._keys(metric, task)], axis=0)
        return found

    def on_resampled(self, names: Sequence[str], metric: str, task: str | None = None) -> Floats:
        """Return the mean score of these runs on resampled examples, [resamples]."""
        places = [self.columns.index(name) for name in names]
        means = [self.resampled[key][:, places].mean(axis=1) for key in self._keys(metric, task)]
        found: Floats = np.mean(means, axis=0)
        return found

    def _keys(self, metric: str, task: str | None) -> list[tuple[str, str]]:
        name, _, own = metric.partition("/")
        return [(each, name) for each in ([task or own] if task or own else averaged(self.examples))]


def base_column(name: str) -> str:
    """Return the name of the column of a base model, or of the base scores of one run."""
    return f"before {name}"


def load_scores(runs: Sequence[SweepRun], resamples: int) -> Scores:
    """Read `eval/<stage>/<task>.jsonl` of all runs; base scores are averaged over the runs that have them.

    Raises:
        UserError: a file is missing or broken, or runs were scored on different tasks or examples.
    """
    scored = list(runs[0].record["eval"]["tuned"]["tasks"])
    for run in runs:
        if differ := set(scored) ^ set(run.record["eval"]["tuned"]["tasks"]):
            raise UserError(
                f"{run.folder}: scored on other tasks than {runs[0].id} (not in both: {', '.join(sorted(differ))}), "
                "so means over tasks cannot be compared; score one of them again, or move it away"
            )
    _check_content(runs, scored)
    columns = {run.id: [("tuned", run.id)] for run in runs}  # (stage, run id) of the files behind each column
    for run in runs:
        if "base" in run.record["eval"]:
            columns.setdefault(base_column(run.model), []).append(("base", run.id))
    read = {task: _read_stages(runs, task) for task in scored}
    ours = {task: files for task, files in read.items() if not task.startswith(HARNESS)}
    metrics, any_metric = _metrics_of(ours.values())
    harness = {task: _metrics_of([files])[0] for task, files in read.items() if task not in ours}
    notes = []
    if "nll" in any_metric.difference(metrics):
        notes.append("NLL is left out, because some runs lack it; tometune evaluate run=… adds it to a run.")
    sources = _by_source(ours) if "nll" in metrics else {}
    known = list(dict.fromkeys([*metrics, *chain(*harness.values())]))
    arrays: dict[str, Floats] = {}  # [examples, columns, metrics], NaN where a task lacks a metric
    for name, stages in [(name, stages) for name, stages in columns.items() if len(stages) > 1]:
        means = [np.array([files[stage].reindex(columns=known).mean() for stage in stages]) for files in ours.values()]
        if note := _disagreement(name, means, metrics):
            notes.append(note)
            columns |= {base_column(run_id): [(stage, run_id)] for stage, run_id in stages}
    for task, files in (read | sources).items():
        scores = [[files[stage].reindex(columns=known).to_numpy(float) for stage in own] for own in columns.values()]
        arrays[task] = np.stack([np.mean(each, axis=0) for each in scores], axis=1)
    clusters = [_clusters(files) for files in (read | sources).values()]
    drawn = resampled_means([array.reshape(len(array), -1) for array in arrays.values()], resamples, clusters)
    drawn = drawn.reshape(len(arrays), resamples, len(columns), len(known))
    keys = [(t, task, m, metric) for t, task in enumerate(arrays) for m, metric in enumerate(known)]
    return Scores(
        by_task=metrics,
        columns=list(columns),
        examples={task: len(arrays[task]) for task in ours},
        sources={source: len(arrays[source]) for source in sources},
        means={(task, metric): arrays[task][:, :, m].mean(axis=0) for _, task, m, metric in keys},
        resampled={(task, metric): drawn[t, :, :, m] for t, task, m, metric in keys},
        notes=notes,
        clusters={task: len(set(labels)) for task, labels in zip(ours, clusters, strict=False) if labels is not None},
        harness=[f"{metric}/{task}" for task, own in harness.items() for metric in own],
    )


def _metrics_of(read: Iterable[Files]) -> tuple[list[str], set[str]]:
    """Return the metrics that all files have, and those of any."""
    known = [[str(c) for c in frame.columns if "/" not in str(c)] for files in read for frame in files.values()]
    return [name for name in known[0] if all(name in others for others in known)], set().union(*known)


def _disagreement(name: str, means: Sequence[Floats], metrics: Sequence[str]) -> str | None:
    """Return a note if runs have other scores of the same base model; `means` is [files, metrics] by task."""
    most = np.nanmax(np.ptp(means, axis=1))
    if most <= TOLERANCE:
        return None
    rouge_l = np.mean(means, axis=0)[:, metrics.index("rougeL")]
    return (
        f"Row {name}: the runs disagree on this score (ROUGE-L {rouge_l.min():.4f} to {rouge_l.max():.4f}, "
        f"up to {most:.4f} on one task), so the row is a mean, and each gain is that over the run's own base scores. "
        "They were scored with different settings, versions or hardware."
    )


def _by_source(read: Mapping[str, Files]) -> dict[str, Files]:
    """Return held-out rows by task and source, e.g. `held_out_pool/math`, for sources with several of them."""
    found: dict[str, Files] = {}
    for task, files in read.items():
        counts = next(iter(files.values()))[SOURCE].value_counts()
        for source in sorted(counts[counts > 1].index) if len(counts) > 1 else ():
            found[f"{task}/{source}"] = {file: frame[frame[SOURCE] == source] for file, frame in files.items()}
    return found


def _clusters(files: Files) -> list[str] | None:
    """Return the cluster of each example of a task, from the first file that has them for all examples."""
    return next((list(frame[CLUSTER]) for frame in files.values() if frame[CLUSTER].notna().all()), None)


def _check_content(runs: Sequence[SweepRun], tasks: Sequence[str]) -> None:
    """Check that runs with the same settings were scored on the same content of each task, e.g. the same prompts."""
    seen: dict[Any, tuple[Any, SweepRun]] = {}
    for run in runs:
        config = {key: value for key, value in run.settings.items() if key.startswith("eval.") or key == "meaning"}
        for task in tasks:
            try:
                scored = (run.folder / "eval" / "tuned" / f"{task}.json").read_text(encoding="utf-8")
                digest = json.loads(scored)["key"]["task"]
            except (OSError, ValueError, KeyError, TypeError):  # of an older version
                continue
            expected, first = seen.setdefault((run.model, task, *sorted(config.items())), (digest, run))
            if digest != expected:
                commands = " && ".join(f"tometune evaluate run={each.folder}" for each in (first, run))
                raise UserError(
                    f"{task}: its content changed between {first.id} and {run.id}, so they cannot be compared; score "
                    f"both again: {commands}"
                )


def _read_stages(runs: Sequence[SweepRun], task: str) -> Files:
    """Read a task's examples by (stage, run id), in the order of the first run; all must have the same ones."""
    scored = [(stage, run) for stage in ("tuned", "base") for run in runs if stage in run.record["eval"]]
    paths = {(stage, run.id): run.folder / "eval" / stage / f"{task}.jsonl" for stage, run in scored}
    found = {name: read_task(path) for name, path in paths.items()}
    first, expected = paths["tuned", runs[0].id], found["tuned", runs[0].id]
    for name, examples in found.items():
        ids = examples.index.symmetric_difference(expected.index)
        if len(ids):
            differ = ((paths[name], ids.intersection(examples.index)), (first, ids.intersection(expected.index)))
            only = "; ".join(f"only in {path}: {some(sorted(own), LISTED)}" for path, own in differ if len(own))
            raise UserError(f"{task}: runs with different examples cannot be paired; {only}; score one of them again")
        found[name] = examples = examples.loc[expected.index]
        if changed := list(examples.index[examples[REFERENCES] != expected[REFERENCES]]):
            raise UserError(
                f"{paths[name]}: other references than in {first} for {some(changed, LISTED)}; the task's examples "
                "changed between the runs, so they cannot be paired: score one of them again"
            )
    return found


def read_task(path: Path) -> pd.DataFrame:
    """Read one file of scores; returns a row per example by id, with a column per metric and the three above.

    Raises:
        UserError: as in `read_scores`, or a score is missing or not a number; names the line.
    """
    fix = f"{REPEAT} to score it again"
    rows = read_scores(path, fix)
    always = () if path.stem.startswith(HARNESS) else ROUGE
    metrics = list(dict.fromkeys([*always, *next(iter(rows.values()))["scores"]]))
    found = pd.DataFrame([row["scores"] for row in rows.values()], index=list(rows)).reindex(columns=metrics)
    for number, place in np.argwhere(~np.isfinite(found.to_numpy(float)))[:1]:
        problem = "not a line of scores (a score is not a number)"
        if metrics[place] not in list(rows.values())[number]["scores"]:
            problem = f"has no {metrics[place]!r}, which the report needs"
        raise UserError(f"{path}:{number + 1}: {problem}; {fix}")
    found[REFERENCES] = [hash(json.dumps(row.get("references", []))) for row in rows.values()]
    for column, name in ((CLUSTER, "cluster"), (SOURCE, "source")):
        found[column] = pd.Series([row.get(name) for row in rows.values()], index=found.index, dtype=object)
    return found


def same_length_rouge(run: SweepRun, task: str) -> list[float]:
    """Return the mean of each of `ROUGE` with each answer and its reference cut to the words of the shorter one.

    The best of several references counts.
    """
    answers: list[str] = []
    references: list[list[str]] = []
    starts: list[int] = []  # where the pairs of each example begin
    for row in read_scores(run.folder / "eval" / "tuned" / f"{task}.jsonl", REPEAT).values():
        starts.append(len(answers))
        for texts in ((row["prediction"], reference) for reference in row["references"]):
            unicode = any(map(needs_unicode, texts))
            words, target = ((as_rouge_words(each) if unicode else each).split() for each in texts)
            shorter = min(len(words), len(target))
            answers.append(" ".join(words[:shorter]))
            references.append([" ".join(target[:shorter])])
    scores = score([], answers, references)
    return [float(np.maximum.reduceat(scores[metric], starts).mean()) for metric in ROUGE]
