"""The content of table.json: rows, comparisons, variance by cause, missing runs and notes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tometune.evaluation.statistics import (
    Floats,
    deviation_interval,
    estimate,
    holm,
    pooled_deviation,
    seeds_needed,
)
from tometune.reporting.cells import STREAMS, Cell, Grid, expected_seeds, one_factor, pairs
from tometune.reporting.conclusions import answer_tokens
from tometune.reporting.scores import METRICS, Resampled, SweepScores, before, interval, resample, rounded
from tometune.reporting.sweep import Missing, Sweep, SweepRun

Values = dict[str, Any]


def make_rows(
    cells: Sequence[Cell], tasks: Sequence[str], resampled: Resampled, missing: Sequence[Missing]
) -> list[Values]:
    """Return one row a cell, and before each model's first the model as it was."""
    rows = []
    for number, cell in enumerate(cells):
        untuned = before(cell.model)
        if untuned in resampled.columns and cell.model not in [other.model for other in cells[:number]]:
            head = {"cell": untuned, "stage": "base", "model": cell.model, "data": "before", "rows": 0, "settings": {}}
            rows.append(
                {
                    **head,
                    "seeds": 0,
                    "seeds_expected": 0,
                    **_scores([untuned], tasks, resampled),
                    "answer_tokens": answer_tokens(_records(cells, cell.model), "base", tasks),
                    "gain": None,
                    "runs": [],
                }
            )
        names = [run.id for run in cell.runs.values()]
        head = {"cell": cell.label, "stage": "tuned", "model": cell.model, "data": cell.data, "rows": cell.rows}
        head |= {"settings": cell.settings, "seeds": len(names), "seeds_expected": expected_seeds(cell, missing)}
        head["answer_tokens"] = answer_tokens([run.record for run in cell.runs.values()], "tuned", tasks)
        gain = _gain(names, untuned, resampled) if untuned in resampled.columns else None
        rows.append({**head, **_scores(names, tasks, resampled), "gain": gain, "runs": _runs(cell, tasks, resampled)})
    return rows


def _records(cells: Sequence[Cell], model: str) -> list[Values]:
    """Return run.json of all of a model's runs."""
    return [dict(run.record) for cell in cells if cell.model == model for run in cell.runs.values()]


def _gain(names: Sequence[str], untuned: str, resampled: Resampled) -> Values:
    """Return what training gained over the untuned model, on the same examples; not part of the tests."""
    found = {}
    for number, metric in enumerate(METRICS):
        gains = resampled.runs(names, number) - resampled.runs([untuned], number)
        examples = resampled.examples(names, number) - resampled.examples([untuned], number)
        seeds = [gains] if len(gains) > 1 else []
        result = estimate(float(gains.mean()), examples, seeds, resampled.confidence)
        found[metric] = {"delta": rounded(result.value), **interval(result)}
    return found


def _scores(names: Sequence[str], tasks: Sequence[str], resampled: Resampled) -> Values:
    """Return mean, deviation and interval of each metric, over tasks and by task."""
    by_task = {task: _metrics(names, number, resampled) for number, task in enumerate(tasks)}
    varies = "seeds and examples" if len(names) > 1 else "examples"
    return {"interval_over": varies, **_metrics(names, None, resampled), "tasks": by_task}


def _metrics(names: Sequence[str], task: int | None, resampled: Resampled) -> Values:
    """Return mean, deviation and interval of each metric."""
    found = {}
    for number, metric in enumerate(METRICS):
        runs = resampled.runs(names, number, task)
        seeds = [runs] if len(runs) > 1 else []  # the spread of one value is unknown, not zero
        result = estimate(float(runs.mean()), resampled.examples(names, number, task), seeds, resampled.confidence)
        deviation = rounded(float(np.std(runs, ddof=1))) if len(runs) > 1 else None
        found[metric] = {"mean": rounded(result.value), "std": deviation, **interval(result)}
    return found


def _runs(cell: Cell, tasks: Sequence[str], resampled: Resampled) -> list[Values]:
    """Return each seed's scores."""

    def scores(run: SweepRun, task: int | None) -> Values:
        values = [resampled.runs([run.id], number, task)[0] for number in range(len(METRICS))]
        return {metric: rounded(float(value)) for metric, value in zip(METRICS, values, strict=True)}

    return [
        {
            "run_id": run.id,
            "seed": seed,
            **scores(run, None),
            "tasks": {task: scores(run, number) for number, task in enumerate(tasks)},
        }
        for seed, run in cell.runs.items()
    ]


DIFFERENCE = 0.01
"""The difference of ROUGE that `seeds_needed` is about."""

POWER = 0.8
"""The chance to find it."""


def compare_all(cells: Sequence[Cell], resampled: Resampled) -> list[Values]:
    """Compare the cells that differ in one thing, on each metric, and correct for the number of tests."""
    found = [
        _compare(cells[second], cells[first], number, resampled)
        for second, first in pairs(cells)
        for number in range(len(METRICS))
    ]
    for comparison, adjusted in zip(found, holm([comparison["p"] for comparison in found]), strict=True):
        comparison["p_holm"] = rounded(adjusted)
        comparison["p"] = rounded(comparison["p"])
    return found


def _compare(a: Cell, b: Cell, metric: int, resampled: Resampled) -> Values:
    """Return a - b on one metric: seed by seed where both have the same seeds, else as two samples."""
    names = [[run.id for run in cell.runs.values()] for cell in (a, b)]
    runs = [resampled.runs(ids, metric) for ids in names]
    examples = resampled.examples(names[0], metric) - resampled.examples(names[1], metric)
    paired = list(a.runs) == list(b.runs)
    seeds = [runs[0] - runs[1]] if paired else runs
    known = min(map(len, runs)) > 1
    delta = float(runs[0].mean() - runs[1].mean())
    result = estimate(delta, examples, seeds if known else [], resampled.confidence)
    return {
        "a": a.label,
        "b": b.label,
        "metric": METRICS[metric],
        "delta": rounded(delta),
        **interval(result),
        "interval_over": "seeds and examples" if known else "examples",
        "p": result.p,
        "p_holm": None,
        "paired": paired,
        "seeds": [len(ids) for ids in names],
        "seeds_needed": _needed(seeds, paired, 1 - resampled.confidence) if known else None,
        "examples_deviation": rounded(float(np.std(examples))),
    }


def _needed(seeds: Sequence[Floats], paired: bool, alpha: float) -> Values:
    """Return the seeds an arm that show a difference of `DIFFERENCE`, and the range its own uncertainty leaves.

    Two samples of other seeds: the deviation of a difference of two single runs, one of each arm.
    """
    deviation = float(np.sqrt(sum(np.var(values, ddof=1) for values in seeds)))
    freedom = sum(len(values) - 1 for values in seeds)
    low, high = deviation_interval(deviation, freedom, 1 - alpha)
    number, least, most = (seeds_needed(value, DIFFERENCE, POWER, alpha, paired) for value in (deviation, low, high))
    return {
        "difference": DIFFERENCE,
        "power": POWER,
        "deviation": rounded(deviation),
        "n": number,
        "low": least,
        "high": most,
    }


def variance_by_cause(cells: Sequence[Cell], resampled: Resampled) -> list[Values]:
    """Return the deviation that each stream causes by itself, over groups of runs that differ in nothing else."""
    found = []
    for stream in STREAMS:
        groups = [[run.id for run in runs] for cell in cells for runs in one_factor(cell, stream)]
        if not groups:
            continue
        entry: Values = {"cause": STREAMS[stream], "stream": f"seeds.{stream}", "groups": len(groups)}
        entry |= {"runs": len({name for names in groups for name in names})}
        for number, metric in enumerate(METRICS):
            deviation, freedom = pooled_deviation([resampled.runs(names, number) for names in groups])
            low, high = deviation_interval(deviation, freedom, resampled.confidence)
            entry["freedom"] = freedom
            entry[metric] = {"std": rounded(deviation), "ci_low": rounded(low), "ci_high": rounded(high)}
        found.append(entry)
    return found


SCHEMA = 1
"""Version of table.json's layout."""


def analyse(sweep: Sweep, grid: Grid, scores: SweepScores, resamples: int, confidence: float) -> Values:
    """Return the content of table.json; the same runs give the same bytes.

    Args:
        sweep: the folder as it was read.
        grid: its runs by cell.
        scores: their scores by example.
        resamples: bootstrap resamples.
        confidence: level of the intervals; 1 - it is the level of the tests.
    """
    resampled = resample(scores, resamples, confidence)
    cells = [cell for cell in grid.cells if cell.runs]
    comparisons = compare_all(cells, resampled)
    tests = sum(comparison["p"] is not None for comparison in comparisons)
    return {
        "schema": SCHEMA,
        "sweep": sweep.folder.resolve().name,
        "limited": any(run.limited for run in sweep.runs),
        "interval": {
            "confidence": confidence,
            "resamples": resamples,
            "method": "hierarchical bootstrap: examples resampled within each task, the same ones for all runs; "
            "over seeds Student's t with the seeds' own standard error (docs/statistics.md)",
            "seeds_vary": [STREAMS[name] for name in grid.varied],
        },
        "family": f"Holm over {tests} tests: {tests // len(METRICS)} pairs of cells × {len(METRICS)} metrics",
        "tasks": {task: len(values) for task, values in scores.tasks.items()},
        "rows": make_rows(cells, list(scores.tasks), resampled, sweep.missing),
        "comparisons": comparisons,
        "variance": variance_by_cause(grid.cells, resampled),
        "missing": [_absent(cell) for cell in sweep.missing],
        "notes": [*sweep.notes, *grid.notes, *scores.notes],
    }


def _absent(cell: Missing) -> Values:
    """Return what table.json says of a cell without a completed run."""
    head = {"run_id": cell.run_id, "model": cell.model, "data": cell.data, "seed": cell.seed}
    return {**head, "reason": cell.reason}
