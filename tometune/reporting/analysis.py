"""The content of table.json: rows, comparisons, variance by cause, what is missing, and what it all means."""

from typing import Any

from tometune.reporting.cells import STREAMS, Grid
from tometune.reporting.comparisons import compare_all, variance_by_cause
from tometune.reporting.resampled import resample
from tometune.reporting.rows import make_rows
from tometune.reporting.scores import METRICS, SweepScores
from tometune.reporting.sweep import Missing, Sweep

SCHEMA = 1
"""Version of table.json's layout."""

Values = dict[str, Any]


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
