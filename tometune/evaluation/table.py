"""The table printed after a run: base, tuned, gain and its interval, by task and over tasks."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tometune.common.errors import UserError
from tometune.common.files import relative_path
from tometune.config.eval import EvalConfig
from tometune.evaluation.metrics import averaged, label
from tometune.evaluation.results import read_scores
from tometune.evaluation.statistics import Estimate, mean_interval, paired_difference

MEAN = "mean of tasks"
JUDGED = ", judged"  # end of a section's name

Columns = dict[str, list[list[float]]]  # of a task, by column, stage and example
Loaded = tuple[Columns, list[str] | None]  # scores of a task, and the cluster of each example if there are clusters


def print_run(folder: Path, record: Mapping[str, Any], config: EvalConfig, then: str | None = None) -> None:
    """Print the table of a run, if a stage was scored, its gain, where its files are, and the next command.

    `record` is its run.json, `then` the command.

    Raises:
        UserError: a file of scores is missing or broken.
    """
    console = Console()
    stages = [stage for stage in ("base", "tuned") if stage in record["eval"]]
    lines: list[tuple[str, str]] = []
    if stages:
        sections = _sections(folder, record, stages)
        console.print(_run_table(record, config, stages, sections))
        loaded = sections.get(MEAN) or next(iter(sections.values()))
        only = [({"rougeL": columns["rougeL"]}, clusters) for columns, clusters in loaded if "rougeL" in columns]
        for _, _, gain in _estimates(only, config) if only and len(stages) == 2 else ():
            verdict = f"{'better' if gain.value > 0 else 'worse'} than base"
            verdict = verdict if gain.excludes_zero else "no clear difference"
            interval = f"{config.confidence:.0%} interval {_interval(gain, '+')}"
            lines.append(("gain", f"ROUGE-L {gain.value:+.3f} ({interval}), {verdict}"))
    lines += [*_places(folder, record), *([("next", then)] if then else [])]
    for name, place in lines:
        console.print(f"{name:9}{place}", soft_wrap=True, markup=False, highlight=False)


def _places(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the folders of the run and of the tracker, and the commands that upload or show what it tracked."""
    yield "run", relative_path(folder)
    tracking = record.get("tracking") or {}
    if tracking.get("sync"):  # W&B's folders have long names, and are all in one
        program = relative_path(tracking["sync"].split(" sync ")[0])
        yield "sync", f"{program} sync {shlex.quote(relative_path(folder))}/wandb/offline*"
    else:
        yield from ((tracking["tracker"], relative_path(place)) for place in tracking.get("folders") or [])
    yield from ((name, tracking[name]) for name in ("url", "show") if tracking.get(name))


def _run_table(
    record: Mapping[str, Any], config: EvalConfig, stages: Sequence[str], sections: Mapping[str, Sequence[Loaded]]
) -> Table:
    """Build the table: the gain and its interval for both stages, else the interval of the one stage."""
    limited = any(record["eval"][stage]["limited"] for stage in stages)
    paired = len(stages) == 2
    method = f"bootstrap over examples, {config.resamples} resamples"
    table = Table(
        title=("[bold red]LIMIT: only some examples, do not report[/]\n" if limited else "") + record["run_id"],
        caption=f"gain: paired {method}\n* the interval excludes 0" if paired else method,
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("task", overflow="fold", min_width=12)
    table.add_column("metric", no_wrap=True)
    for name in [*stages, *(["gain"] if paired else []), f"{config.confidence:.0%} interval"]:
        table.add_column(name, justify="right", no_wrap=True)
    if any("nll" in columns for loaded in sections.values() for columns, _ in loaded):
        table.caption = f"{table.caption}\nNLL: bits per byte of the references, lower is better"
    for name, loaded in sections.items():
        _add_section(table, name, loaded, config)
    return table


def gains(folder: Path, record: Mapping[str, Any], config: EvalConfig) -> dict[str, Any]:
    """Return the gains of a run with the ends of their intervals, in the layout of `eval.tuned` in run.json.

    E.g. `{rougeL: 0.02, rougeL_low: 0.01, rougeL_high: 0.03, tasks: {task: {…}}}`; empty unless both stages are scored.

    Raises:
        UserError: a file of scores is missing or broken.
    """
    if not {"base", "tuned"} <= set(record["eval"]):
        return {}
    tasks: dict[str, dict[str, float]] = {}
    for name, loaded in _sections(folder, record, ("base", "tuned")).items():
        values = tasks.setdefault(name.removesuffix(JUDGED), {})
        for column, _, gain in _estimates(loaded, config):
            ends = {} if gain.low is None or gain.high is None else {"_low": gain.low, "_high": gain.high}
            values |= {f"{column}{part}": value for part, value in {"": gain.value, **ends}.items()}
    over_tasks = tasks.pop(MEAN, None) or tasks[averaged(tasks)[0]]
    return {**over_tasks, "tasks": tasks}


def _sections(folder: Path, record: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Sequence[Loaded]]:
    """Return what each section of the table is about: a task, all tasks, or a task that a judge compared."""
    tasks = {name: _load(folder, name, stages) for name in record["eval"][stages[-1]]["tasks"]}
    sections: dict[str, Sequence[Loaded]] = {name: [task] for name, task in tasks.items()}
    if len(averaged(tasks)) > 1:
        sections[MEAN] = [tasks[name] for name in averaged(tasks)]
    for name in record["eval"][stages[-1]].get("judge", {}).get("tasks", {}) if len(stages) == 2 else ():
        path = folder / "eval" / "judge" / f"{name}.jsonl"
        wins = [row["scores"]["win"] for row in read_scores(path).values()]
        half = [0.5] * len(wins)  # of the base model against itself
        sections[name + JUDGED] = [({"win": [half, wins]}, None)]
    return sections


def _load(folder: Path, task: str, stages: Sequence[str]) -> Loaded:
    """Read a task's scores of each stage, and the cluster of each example if there are clusters."""
    loaded = [read_scores(folder / "eval" / stage / f"{task}.jsonl") for stage in stages]
    if any(list(scores) != list(loaded[0]) for scores in loaded):
        raise UserError(f"{folder}/eval/*/{task}.jsonl: the examples differ; delete them and score the run again")
    first = list(loaded[0].values())
    scored = [next(iter(rows.values()))["scores"] for rows in loaded]
    columns = {
        column: [[row["scores"][column] for row in rows.values()] for rows in loaded]
        for column in scored[0]
        if all(column in other for other in scored)
    }
    return columns, [row["cluster"] for row in first] if all("cluster" in row for row in first) else None


def _add_section(table: Table, name: str, loaded: Sequence[Loaded], config: EvalConfig) -> None:
    """Add one row per metric that all these tasks have, in the order of the scores."""
    table.add_section()
    count = sum(len(next(iter(columns.values()))[0]) for columns, _ in loaded)
    rows = []
    for column, means, found in _estimates(loaded, config):
        cells = [label(column), *(f"{mean:.3f}" for mean in means)]
        if len(means) == 2:
            cells.append(f"[bold]{found.value:+.3f}*[/]" if found.excludes_zero else f"{found.value:+.3f} ")
        rows.append([*cells, _interval(found, "+" if len(means) == 2 else "")])
    heads = [name, f"{count} example{'s' if count != 1 else ''}"] if rows else []
    for head, cells in zip_longest(heads, rows):
        table.add_row(head or "", *(cells or []))


def _estimates(loaded: Sequence[Loaded], config: EvalConfig) -> Iterator[tuple[str, list[float], Estimate]]:
    """Yield each column that all these tasks have, its mean by stage, and its gain; with one stage, its interval."""
    tasks, clusters = [columns for columns, _ in loaded], [labels for _, labels in loaded]
    for column in [column for column in tasks[0] if all(column in columns for columns in tasks)]:
        stages = list(zip(*(columns[column] for columns in tasks), strict=True))
        means = [fmean(map(fmean, stage)) for stage in stages]
        if len(stages) == 1:
            yield column, means, mean_interval(stages[0], config.resamples, config.confidence, clusters)
        else:
            yield column, means, paired_difference(stages[0], stages[1], config.resamples, config.confidence, clusters)


def _interval(found: Estimate, sign: str) -> str:
    if found.low is None or found.high is None:
        return "–"
    return f"{found.low:{sign}.3f} to {found.high:{sign}.3f}"
