"""What a planned sweep can detect: the smallest difference, and the seeds and examples that a wanted one takes."""

from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from tometune.common.errors import UserError
from tometune.config.report import asked, entries
from tometune.config.root import Config
from tometune.evaluation.metrics import averaged, label
from tometune.evaluation.results import read_scores
from tometune.evaluation.statistics import detectable, power, seeds_needed
from tometune.reporting.sweep import finished_tables
from tometune.runs.stored import earlier_runs

DIFFERENCE = 0.01  # that the numbers of seeds and examples refer to, unless `report.margin` is set
POWER = 0.8
MOST = 10_000  # times the planned examples

Spread = tuple[float, float]
"""Deviation over seeds of the difference between two runs (0 if unknown); its standard error over the examples."""


def power_lines(config: Config, seeds: int, examples: Mapping[str, int]) -> list[str]:
    """Return what a sweep can detect with so many seeds per cell and examples by task, a line per primary metric."""
    if seeds < 2:
        return ["power: a single seed allows no test; add seeds, e.g. seed=0,1,2"]
    found, source = _of_tables(config, examples), "from earlier sweeps"
    if not found:
        found, source = _of_base_scores(config, examples), "from the base model's scores, so over examples only"
    if not found:
        return ["power: unknown until a sweep of this model, or a run with eval.base=true, was scored on these tasks"]
    alpha, wanted = 1 - config.eval.confidence, config.report.margin or DIFFERENCE
    total = sum(examples[task] for task in averaged(examples))
    chosen = {each.metric for each in map(asked, entries(config.report.primary)) if each}
    lines = [f"power of {POWER:.0%} at the level {alpha:.2g} with {seeds} seeds and {total:,} examples, {source}:"]
    for metric, (deviation, error) in found.items():
        if chosen and not chosen & {None, metric}:
            continue
        if not deviation and not error:
            lines.append(f"  {label(metric)}: unknown, since it is the same in all these scores")
            continue

        def with_examples(times: int) -> float:  # the deviation over seeds does not change with the examples
            return power(seeds, wanted, deviation, alpha, error=error / times**0.5)  # noqa: B023 - called here only

        more = seeds_needed(deviation, wanted, POWER, alpha, error=error)
        times = bisect_left(range(MOST + 1), POWER, lo=1, key=with_examples)
        takes = [
            "no number of seeds" if more is None else f"{more:,} seeds",
            "no number of examples" if times > MOST else f"{times * total:,} examples",
        ]
        least = detectable(seeds, deviation, alpha, POWER, error)
        lines.append(f"  {label(metric)}: differences from {least:.3f}; {wanted:g} takes {' or '.join(takes)}")
    return lines


def _of_tables(config: Config, examples: Mapping[str, int]) -> dict[str, Spread]:
    """Return the mean spread by metric over all comparisons in the table.json files of this model on these tasks."""
    squares: dict[str, list[tuple[float, float]]] = {}
    for table in finished_tables(Path(config.paths.multirun).expanduser()).values():
        with suppress(KeyError, TypeError):  # of another version
            cells = {row["cell"] for row in table["rows"] if row["model"] == config.model.name}
            if table["limited"] or set(table["tasks"]) != set(examples):
                continue
            ratio = float(np.mean([table["tasks"][task] / count for task, count in examples.items()]))
            for entry in table["comparisons"]:
                if entry["a"] in cells and entry["seeds_needed"] is not None:
                    pair = entry["seeds_needed"]["deviation"] ** 2, entry["examples_deviation"] ** 2 * ratio
                    squares.setdefault(entry["metric"], []).append(pair)
    means = {metric: np.sqrt(np.mean(found, axis=0)) for metric, found in squares.items()}
    return {metric: (float(deviation), float(error)) for metric, (deviation, error) in means.items()}


def _of_base_scores(config: Config, examples: Mapping[str, int]) -> dict[str, Spread]:
    """Return the spread of the base model's scores over examples, from a run that has them for these tasks.

    That of a difference is at most √2 times as large, unless the scores of two models are negatively correlated.
    """
    for folder, record in earlier_runs(config.paths):
        try:
            if record["model"]["name"] != config.model.name:
                continue
            rows = {task: read_scores(folder / "eval" / "base" / f"{task}.jsonl").values() for task in examples}
        except (KeyError, TypeError, UserError):
            continue
        tasks = {task: [row["scores"] for row in rows[task]] for task in averaged(examples)}
        first, *others = [list(scores[0]) for scores in tasks.values()]
        spreads: dict[str, Spread] = {}
        for metric in (name for name in first if all(name in other for other in others)):
            squares = [np.var([row[metric] for row in scores]) / examples[task] for task, scores in tasks.items()]
            spreads[metric] = 0.0, float(np.sqrt(2 * sum(squares)) / len(squares))
        return spreads
    return {}
