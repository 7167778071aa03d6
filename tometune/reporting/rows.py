"""The rows of the table: means, deviations over seeds, intervals; over tasks and by task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tometune.evaluation.comparison import estimate
from tometune.reporting.cells import Cell, expected_seeds
from tometune.reporting.lengths import answer_tokens
from tometune.reporting.resampled import Resampled, interval, rounded
from tometune.reporting.scores import METRICS, before
from tometune.reporting.sweep import Missing, SweepRun

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
