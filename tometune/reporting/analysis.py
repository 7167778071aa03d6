"""Builds the content of table.json: rows with scores, comparisons, variance by cause.

Intervals and tests are computed in evaluation/statistics.py; this module chooses what to compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tometune.config.report import ReportConfig
from tometune.evaluation import statistics
from tometune.evaluation.metrics import better
from tometune.evaluation.statistics import Floats
from tometune.reporting.cautions import length_differences
from tometune.reporting.controls import controls, training_of, unchanged_arms
from tometune.reporting.explanation import explanations
from tometune.reporting.grouping import STREAMS, Cell, expected_seeds, group, one_factor, pairs, varied_streams
from tometune.reporting.question import ask
from tometune.reporting.score_files import ROUGE, Scores, base_column, load_scores, same_length_rouge
from tometune.reporting.sweep import Missing, Sweep, read_sweep

SCHEMA = 1  # version of table.json's layout
DIFFERENCE = 0.01  # the difference in score that `seeds_needed` refers to
POWER = 0.8  # probability of detecting it
DIGITS = 6  # decimals in table.json; further ones depend on the order of summation
COPIED = ("model", "data", "rows", "settings")  # from a cell to its row
NOT_FIGURES = ("settings", "question", "margin")  # in table.json: written by somebody, not computed

Values = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """A sweep and its results."""

    sweep: Sweep
    cells: list[Cell]
    table: Values  # the content of table.json; the same runs give the same bytes


def build(
    folder: Path,
    resamples: int,
    confidence: float,
    settings: ReportConfig | None = None,
    run_folders: Sequence[Path] = (),
) -> Report:
    """Read a sweep folder and compare its cells; 1 - `confidence` is the level of the tests.

    `settings` is the question; where it has none, that in sweep.json counts. `run_folders` are runs that are compared,
    in all pairs, instead of those in the folder.

    Raises:
        UserError: the folder, a record or a file of scores is missing or broken, runs cannot be paired, or the question
            names no comparison.
    """
    sweep = read_sweep(folder, run_folders)
    all_cells, notes = group(sweep)
    scores = load_scores(sweep.runs, resamples)
    cells = [cell for cell in all_cells if cell.runs]
    chosen = product(pairs(cells, all_pairs=bool(run_folders)), scores.metrics)
    compared = [_compare(*pair, metric, scores, confidence) for pair, metric in chosen]
    comparisons, by_label = [entry for entry, _ in compared], {cell.label: vars(cell) for cell in cells}
    question, asked = ask(folder, settings or ReportConfig(), comparisons, by_label, scores.metrics)
    _correct(compared, question["margin"], confidence)
    rows = _rows(cells, scores, sweep.missing, confidence)
    table = {
        "schema": SCHEMA,
        "sweep": sweep.folder.resolve().name,
        "limited": any(bool(stage.get("limited")) for run in sweep.runs for stage in run.record["eval"].values()),
        "metrics": scores.metrics,
        "interval": {
            "confidence": confidence,
            "resamples": resamples,
            "method": "hierarchical bootstrap: examples resampled within each task, the same ones for all runs; "
            "over seeds, Student's t scaled by the standard error over seeds (docs/statistics.md)",
            "seeds_vary": [STREAMS[name] for name in varied_streams(sweep.runs)],
        },
        "question": question,
        "family": _family(comparisons, scores.metrics, question["primary"]),
        "tasks": scores.examples,
        **({"sources": scores.sources} if scores.sources else {}),
        **({"clusters": scores.clusters} if scores.clusters else {}),
        "controls": controls(cells, sweep.design),
        "rows": rows,
        "comparisons": comparisons,
        "signal": _signal_to_noise(cells, scores),
        "length_matched": _length_matched(cells, rows),
        "variance": _variance_by_cause(all_cells, scores, confidence),
        "missing": [{key: value for key, value in vars(cell).items() if key != "settings"} for cell in sweep.missing],
        "notes": [*asked, *sweep.notes, *notes, *unchanged_arms(cells), *scores.notes],
    }
    table = _rounded(table)
    explained = explanations(sweep, cells, table)
    return Report(sweep, all_cells, {**table, **({"explanations": explained} if explained else {})})


def _rounded(value: Any) -> Any:
    """Round the figures of table.json, without negative zeros; settings (a learning rate of 1e-7) stay as they are."""
    if isinstance(value, dict):
        return {key: each if key in NOT_FIGURES else _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(float(value), DIGITS) + 0.0 if isinstance(value, float) else value


def _rows(cells: Sequence[Cell], scores: Scores, missing: Sequence[Missing], confidence: float) -> list[Values]:
    """Return one row per cell, and before the first cell of each model a row for its base model."""
    rows: list[Values] = []
    for cell in cells:
        base = base_column(cell.model)
        scored = base in scores.columns
        if scored and cell.model not in [row["model"] for row in rows]:
            records = [run.record for other in cells if other.model == cell.model for run in other.runs.values()]
            about = {"cell": base, "stage": "base", "model": cell.model, "data": "before", "rows": 0, "settings": {}}
            means = {"seeds": 0, "seeds_expected": 0, **_mean_scores([base], scores, confidence)}
            lengths = _answer_tokens(records, "base", scores)
            rows.append({**about, **means, "answer_tokens": lengths, "gain": None, "runs": []})
        about = {"cell": cell.label, "stage": "tuned", **{name: getattr(cell, name) for name in COPIED}}
        seeds = {"seeds": len(cell.runs), "seeds_expected": expected_seeds(cell, missing)}
        records = [run.record for run in cell.runs.values()]
        rows.append(
            {
                **{**about, **seeds, "arm": cell.arm, "training": training_of(cell)},
                "answer_tokens": _answer_tokens(records, "tuned", scores),
                **_mean_scores(cell.ids, scores, confidence),
                "gain": _gain(cell, scores, confidence) if scored else None,
                "runs": [
                    {
                        **{"run_id": run.id, "seed": seed, **_run_scores(run.id, None, scores)},
                        "tasks": {task: _run_scores(run.id, task, scores) for task in scores.examples},
                    }
                    for seed, run in cell.runs.items()
                ],
            }
        )
    return rows


def _answer_tokens(records: Sequence[Mapping[str, Any]], stage: str, scores: Scores) -> dict[str, float | None]:
    """Return the mean number of generated tokens per answer by task, over runs; None where a record has no count."""
    means: dict[str, float | None] = {}
    for task in scores.examples:
        entries = [run["eval"][stage]["tasks"].get(task, {}) for run in records if stage in run["eval"]]
        known = [entry["tokens"] / entry["examples"] for entry in entries if entry.get("tokens") is not None]
        means[task] = round(float(np.mean(known)), 2) if known and len(known) == len(entries) else None
    return means


def _mean_scores(names: Sequence[str], scores: Scores, confidence: float) -> Values:
    """Return mean, deviation and interval of each metric, over tasks and by task."""

    def metrics(task: str | None) -> Values:
        found = {}
        for metric in scores.metrics if task is None else scores.by_task:
            runs = scores.of_runs(names, metric, task)
            interval = _interval(runs, scores.on_resampled(names, metric, task), confidence)
            deviation = np.std(runs, ddof=1) if len(runs) > 1 else None
            found[metric] = {"mean": runs.mean(), "std": deviation, **interval}
        return found

    return {
        "interval_over": "seeds and examples" if len(names) > 1 else "examples",
        **metrics(None),
        "tasks": {task: metrics(task) for task in scores.examples},
        **({"sources": {name: metrics(name)["nll"] for name in scores.sources}} if scores.sources else {}),
    }


def _gain(cell: Cell, scores: Scores, confidence: float) -> Values:
    """Return tuned - base on the same examples; not part of the corrected tests."""
    found, own = {}, [base_column(name) for name in cell.ids]
    bases = [name if name in scores.columns else base_column(cell.model) for name in own]
    for metric in scores.metrics:
        gains = scores.of_runs(cell.ids, metric) - scores.of_runs(bases, metric)
        examples = scores.on_resampled(cell.ids, metric) - scores.on_resampled(bases, metric)
        found[metric] = {"delta": gains.mean(), **_interval(gains, examples, confidence)}
    return found


def _interval(runs: Floats, examples: Floats, confidence: float) -> Values:
    """Return the interval of a mean over runs. For a single run it covers examples only: its spread is unknown."""
    result = statistics.estimate(float(runs.mean()), examples, [runs] if len(runs) > 1 else [], confidence)
    return {"ci_low": result.low, "ci_high": result.high}


def _run_scores(run_id: str, task: str | None, scores: Scores) -> Values:
    metrics = scores.metrics if task is None else scores.by_task
    return {metric: scores.of_runs([run_id], metric, task)[0] for metric in metrics}


def _family(comparisons: Sequence[Values], metrics: Sequence[str], primary: Sequence[str]) -> str:
    """Describe the tests that are corrected together."""
    tests = sum(entry["p_holm"] is not None for entry in comparisons)
    if primary:
        others = sum(not entry["primary"] for entry in comparisons)
        return f"Holm correction over the {tests} primary of all tests ({', '.join(primary)}); {others} are exploratory"
    pairs_tested = f"{tests // len(metrics)} pair{'' if tests == len(metrics) else 's'} of cells"
    return f"Holm correction over {tests} tests: {pairs_tested} × {len(metrics)} metrics"


def _correct(compared: Sequence[tuple[Values, Floats | None]], margin: float | None, confidence: float) -> None:
    """Add what depends on the number of primary comparisons: p-values, simultaneous intervals, tests of equivalence.

    With a margin these are: whether a is no worse than b, and whether both are the same, each with its own correction.
    Their interval is that of two one-sided tests, 90 % at the level 5 %.
    """
    primary = [(entry, draws) for entry, draws in compared if entry["primary"] and draws is not None]
    adjusted = statistics.holm([entry["p"] for entry, _ in primary])
    ends = statistics.simultaneous_intervals([draws for _, draws in primary], 1 - confidence)
    for (entry, _), p, (low, high) in zip(primary, adjusted, ends, strict=True):
        entry |= {"p_holm": p, "ci_low_holm": low, "ci_high_holm": high}
    if margin is None:
        return
    gains = [draws if better(entry["metric"], 1) else -draws for entry, draws in primary]
    no_worse = statistics.holm([statistics.p_at_most(draws, -margin) for draws in gains])
    same = statistics.holm([statistics.p_equivalent(draws, margin) for draws in gains])
    for (entry, draws), p_no_worse, p_same in zip(primary, no_worse, same, strict=True):
        low, high = np.quantile(draws, [1 - confidence, confidence])
        tests = {"p_no_worse_holm": p_no_worse, "p_same_holm": p_same}
        entry["equivalence"] = {"margin": margin, "ci_low": low, "ci_high": high, **tests}


def _compare(a: Cell, b: Cell, metric: str, scores: Scores, confidence: float) -> tuple[Values, Floats | None]:
    """Return a - b on one metric: paired by seed if both have the same seeds, else as two samples.

    Also returns the draws of its tests; None if a cell has a single seed.
    """
    names = [a.ids, b.ids]
    runs = [scores.of_runs(ids, metric) for ids in names]
    examples = scores.on_resampled(names[0], metric) - scores.on_resampled(names[1], metric)
    paired = list(a.runs) == list(b.runs)
    seeds = [runs[0] - runs[1]] if paired else runs
    known = min(map(len, runs)) > 1
    delta = float(runs[0].mean() - runs[1].mean())
    result = statistics.estimate(delta, examples, seeds if known else [], confidence)
    comparison = {
        **{"a": a.label, "b": b.label, "metric": metric, "delta": delta, "ci_low": result.low, "ci_high": result.high},
        "interval_over": "seeds and examples" if known else "examples",
        "p": result.p,
        **{"p_holm": None, "ci_low_holm": None, "ci_high_holm": None},
        "paired": paired,
        "seeds": [len(ids) for ids in names],
        "seeds_needed": _seeds_needed(seeds, paired, 1 - confidence, float(np.std(examples))) if known else None,
        "examples_deviation": np.std(examples),
    }
    return comparison, statistics.combined_draws(examples, seeds) if known else None


def _seeds_needed(seeds: Sequence[Floats], paired: bool, alpha: float, error: float) -> Values:
    """Return the seeds per arm that detect `DIFFERENCE`, with the range given by the uncertainty of the deviation.

    `seeds` holds the paired differences, or, if the arms have different seeds, the scores of each arm. The deviation is
    that of the difference between one run of each arm; `error` is the standard error over examples, which more seeds
    do not reduce.
    """
    deviation = float(np.sqrt(sum(np.var(values, ddof=1) for values in seeds)))
    ends = statistics.deviation_interval(deviation, sum(len(values) - 1 for values in seeds), 1 - alpha)
    counts = [statistics.seeds_needed(each, DIFFERENCE, POWER, alpha, paired, error) for each in (deviation, *ends)]
    known = {"difference": DIFFERENCE, "power": POWER, "deviation": deviation}
    return {**known, **dict(zip(("n", "low", "high"), counts, strict=True))}


def _signal_to_noise(cells: Sequence[Cell], scores: Scores) -> list[Values]:
    """Return signal, noise and their ratio by model, task and metric, for models with two cells and two seeds.

    Heineman et al. 2025 (https://arxiv.org/abs/2508.13144): the signal is the largest difference between the mean
    scores of two models, here cells, divided by the mean score. The noise is a standard deviation divided by the mean
    score: there over the last checkpoints of a run, here over the seeds of a cell. `task` None is all tasks.
    """
    found = []
    for model in dict.fromkeys(cell.model for cell in cells):
        names = [cell.ids for cell in cells if cell.model == model]
        if len(names) < 2 or max(map(len, names)) < 2:
            continue
        for task, metric in product([*scores.examples, *([None] if len(scores.examples) > 1 else [])], scores.metrics):
            if task is not None and "/" in metric:  # of one other task
                continue
            runs = [scores.of_runs(ids, metric, task) for ids in names]
            means = [values.mean() for values in runs]
            level, spread = np.mean(means), max(means) - min(means)
            noise, _ = statistics.pooled_deviation([values for values in runs if len(values) > 1])
            entry = {"model": model, "task": task, "metric": metric, "signal": None, "noise": None}
            entry |= {"signal": spread / level, "noise": noise / level} if level else {}
            found.append({**entry, "ratio": spread / noise if noise else None})
    return found


def _length_matched(cells: Sequence[Cell], rows: Sequence[Values]) -> list[Values]:
    """Return ROUGE on texts of the same length by cell, for the tasks of `length_differences`."""
    found = []
    for model, task, lengths in length_differences(rows):
        means = {}
        for cell in (cell for cell in cells if cell.label in lengths):
            mean = np.mean([same_length_rouge(run, task) for run in cell.runs.values()], axis=0)
            means[cell.label] = dict(zip(ROUGE, mean.tolist(), strict=True))
        found.append({"model": model, "task": task, "cells": means})
    return found


def _variance_by_cause(cells: Sequence[Cell], scores: Scores, confidence: float) -> list[Values]:
    """Return the deviation that each stream causes, computed from groups of runs that differ in this stream alone."""
    found = []
    for stream, cause in STREAMS.items():
        groups = [[run.id for run in runs] for cell in cells for runs in one_factor(cell, stream)]
        if not groups:
            continue
        runs = {name for names in groups for name in names}
        entry: Values = {"cause": cause, "stream": f"seeds.{stream}", "groups": len(groups), "runs": len(runs)}
        for metric in scores.metrics:
            deviation, freedom = statistics.pooled_deviation([scores.of_runs(names, metric) for names in groups])
            low, high = statistics.deviation_interval(deviation, freedom, confidence)
            entry["freedom"] = freedom
            entry[metric] = {"std": deviation, "ci_low": low, "ci_high": high}
        found.append(entry)
    return found
