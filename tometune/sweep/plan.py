"""The plan of a command: its runs with their sizes, which are done, and an estimate of time, memory and disk."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tometune.common.distributed import processes
from tometune.common.errors import UserError, some
from tometune.config.eval import HARNESS
from tometune.config.model import Backend, Compute, Quantization
from tometune.config.root import Config
from tometune.config.sweep_cells import Jobs
from tometune.config.tracking import Tracker
from tometune.models.machine import device_name, resolve_backend
from tometune.models.source import parameters_to_train, quantized
from tometune.reporting.controls import capacity_line
from tometune.runs.finished import damage
from tometune.runs.inputs import RunInputs
from tometune.runs.run import Run
from tometune.runs.stored import earlier_runs
from tometune.sweep.hooks import check_primary
from tometune.sweep.power import power_lines

MEASURED = "measured"  # folder in the cache that keeps the short runs of `plan=measure`
STEPS = 12  # training steps of a short run
EXAMPLES = 16  # examples per task of a short run, before and after its training


class Kind(NamedTuple):
    """Runs of the same kind are assumed to be equally fast."""

    model: str
    quantization: str
    backend: str
    device: str
    trained: str = "lora"
    compute: str = "default"


@dataclass(frozen=True)
class Speed:
    """Speed and size of a run; None is unknown."""

    source: str  # where the numbers are from
    tokens_per_second: float
    answers_per_second: float | None
    memory: float  # peak bytes
    disk: float | None = None  # bytes of the run's folder without checkpoints
    checkpoint: float = 0.0  # bytes of one checkpoint
    other_seconds: float = 0.0  # loading, compiling and saving
    base_seconds: float = 0.0  # part of `other_seconds`: scoring the base model, except generating its answers


GPU_RESULTS = "docs/results/gpu"
REFERENCE = {
    Kind("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "nf4", "transformers", "NVIDIA H200"): Speed(
        f"{GPU_RESULTS}/bench.json, training only", 37_436, None, 60.9e9, other_seconds=50
    ),
    Kind("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "nf4", "unsloth", "NVIDIA H200"): Speed(
        f"{GPU_RESULTS}/bench_be3ba23.json, training only", 34_989, None, 41.8e9, other_seconds=74
    ),
    Kind("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "nf4", "unsloth", "NVIDIA H100 80GB HBM3"): Speed(
        f"{GPU_RESULTS}/bench_h100.json, training only", 32_579, None, 41.8e9, other_seconds=75
    ),
    Kind("HuggingFaceTB/SmolLM2-135M-Instruct", "none", "transformers", "NVIDIA H100 80GB HBM3"): Speed(
        f"{GPU_RESULTS}/smollm2_300_steps.run.json", 173_433, 222, 12.9e9, other_seconds=27
    ),
}
"""Speeds by kind, for a GPU without earlier runs; docs/benchmarks.md has the data and settings of these runs.

SmolLM2's 222 answers per second were measured as 5,000 answers in 22.5 s. `other_seconds` is the time from the start to
the first step; for SmolLM2 it is what remains of the run's 77 s without training and answers.
"""


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan."""

    run_id: str
    rows: int
    tokens: int  # read in training, over all steps
    steps: int
    answers: int  # generated in the evaluation, over tasks and stages, without `eval.harness`
    done: bool
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    source: str = "unknown"  # where the speed is from
    examples: Mapping[str, int] = field(default_factory=dict)  # of the evaluation, by task
    capacity: str = ""  # see `capacity_line`
    base: Mapping[str, Hashable] = field(default_factory=dict)  # by task, what the base model's scores depend on
    base_seconds: float = 0.0  # part of `seconds`: scoring the base model


def plan_sweep(jobs: Jobs, measure: Callable[[Config], None]) -> int:
    """Print the plan of a command, see `plan_run`; returns the exit status, 2 if no run is possible.

    Raises:
        UserError: the command is a search, or the question names cells that it does not compare.
    """
    if jobs.search:
        raise UserError("plan=true: the runs of a search are not known in advance; plan one of them without the sweep")
    check_primary(jobs)
    runs, causes = list[PlannedRun](), dict[str, list[str]]()
    shared = set.intersection(*(set(job.overrides) for job in jobs.known))
    for job in jobs.known:
        try:
            if job.problems:
                raise UserError(" ".join(job.problems))
            runs.append(without_base(plan_run(job.config, measure), runs))
        except UserError as error:
            own = (text for text in job.overrides if text not in shared and not text.startswith("seed="))
            causes.setdefault(str(error), []).append(" ".join(own))
    print_plan(runs, [f"{some(dict.fromkeys(c), 6)}: {cause}".removeprefix(": ") for cause, c in causes.items()])
    seeds = Counter(tuple(text for text in job.overrides if not text.startswith("seed")) for job in jobs.known)
    if len(seeds) > 1 and runs:
        print(*power_lines(jobs.config, min(seeds.values()), runs[0].examples), sep="\n")
    return 0 if runs else 2


def without_base(run: PlannedRun, others: Iterable[PlannedRun]) -> PlannedRun:
    """Return the run without the cost of the base scores that another run of the command has, since they are copied."""
    scored = {key for other in others for key in other.base.values()}
    copied = sum(run.examples[task] for task, key in run.base.items() if key in scored)
    if run.done or not copied:
        return run
    saved = run.base_seconds * copied / sum(run.examples.values())
    seconds = None if run.seconds is None else run.seconds - saved
    return replace(run, answers=run.answers - copied, seconds=seconds)


def plan_run(config: Config, measure: Callable[[Config], None]) -> PlannedRun:
    """Return the plan of one run; makes and caches its mix and tokens.

    `measure` gets the config of a short run to make if `plan=measure` and the speed is unknown.

    Raises:
        UserError: the data or a task does not allow the run.
    """
    from tometune.data.tokens import pack
    from tometune.models.source import locate
    from tometune.training.memory import estimate
    from tometune.training.steps import checkpoints_kept, effective_batch, in_packs, steps_of, with_steps

    inputs = RunInputs.resolve(config)
    run = Run.find(config, inputs.fingerprints)
    tokens = inputs.tokens
    rows = pack(tokens.dataset, config.trainer.max_length) if in_packs(config.trainer) else tokens.dataset
    steps = steps_of(with_steps(config.trainer, len(rows), tokens.counts.tokens), len(rows))
    epochs = steps / math.ceil(len(rows) / effective_batch(config.trainer))
    read, trained = round(tokens.counts.tokens * epochs), round(tokens.counts.trainable_tokens * epochs)
    source = locate(config.model, inputs.cache, weights=False)
    rows_of_mix, parameters = len(inputs.mix.row_ids), parameters_to_train(source, config.lora)
    capacity = capacity_line(rows_of_mix, trained, parameters, config.lora.enabled, epochs)
    examples = {task.name: len(task.examples) for task in inputs.tasks}
    answers = sum(examples.values()) * (2 if config.eval.base else 1)
    done = run.completed and not damage(run.folder, run.record)
    # Approximately what `Scorer` shares base scores by; the rest is the same in all runs of a command.
    how, model = config.eval, replace(config.model, name="", backend=Backend.auto, compute=Compute.default)
    seed = config.seeds.generation if how.temperature else 0
    key = (str(model), how.temperature, seed, how.max_prompt_tokens, how.engine, how.batch_size, how.nll)
    base = {task.name: (*key, task.digest) for task in inputs.tasks} if how.base else {}
    planned = PlannedRun(
        run.id, rows_of_mix, read, steps, answers, done, examples=examples, capacity=capacity, base=base
    )
    if planned.done:
        return planned
    speed = known_speed(config, inputs.cache)
    if speed is None and config.plan == "measure" and processes() == 1:
        print(f"measuring {STEPS} training steps and {EXAMPLES} answers per task", file=sys.stderr)
        try:
            measure(_short_run(config, inputs.cache))
        except UserError as error:
            print(f"not measured: {error}", file=sys.stderr)
        speed = known_speed(config, inputs.cache)
    if speed is None:
        return replace(planned, memory=estimate(source, config.trainer, config.lora))
    answering = answers / speed.answers_per_second if speed.answers_per_second else 0.0
    other = speed.other_seconds - (0.0 if config.eval.base else speed.base_seconds)
    checkpoints = speed.checkpoint * checkpoints_kept(config.trainer, steps)
    return replace(
        planned,
        seconds=other + read / speed.tokens_per_second + answering,
        base_seconds=speed.base_seconds + answering / 2 if config.eval.base else 0.0,
        memory=speed.memory,
        disk=None if speed.disk is None else speed.disk + checkpoints,
        source=speed.source,
    )


def known_speed(config: Config, cache: Path) -> Speed | None:
    """Return the speed of runs of the same kind, from earlier runs on this machine, else from `REFERENCE`."""
    quantization = Quantization.nf4 if quantized(config.model) else Quantization.none
    backend = str(resolve_backend(config.model, config.trainer.loss_type))
    trained, compute = "lora" if config.lora.enabled else "full", str(config.model.compute)
    kind = Kind(str(config.model.id), str(quantization), backend, device_name(), trained, compute)
    finished = []
    for folder, record in earlier_runs(config.paths, cache / MEASURED):
        if record.get("status") != "completed":  # its `train` can be null
            continue
        with suppress(KeyError, TypeError):  # of another version
            model, trained = record["model"], record["train"].get("kind", "lora")
            known = (model["id"], model["quantization"], model["backend"], model.get("device_name", ""))
            own = Kind(*known, trained, model.get("compute", "default"))
            if own == kind and (record.get("phases") or record["attempts"] == 1):
                finished.append((str(record["finished"]), folder, record))
    recent = sorted(finished, key=lambda run: run[0])[-5:]
    if not recent:
        return REFERENCE.get(kind)
    speeds = [_speed_of(folder, record) for _, folder, record in recent]
    middle = {name: median(vars(speed)[name] for speed in speeds) for name in vars(speeds[0]) if name != "source"}
    middle["memory"] = max(speed.memory for speed in speeds)
    return Speed(f"{len(recent)} earlier run{'s' if len(recent) > 1 else ''}", **middle)


def _speed_of(folder: Path, record: Mapping[str, Any]) -> Speed:
    def size(path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    stages = {  # the seconds of `eval.harness` stay in `other`, since a plan counts no answers for it
        stage: [
            task for name, task in scores["tasks"].items() if not task.get("reused") and not name.startswith(HARNESS)
        ]
        for stage, scores in record["eval"].items()
    }
    answering = {stage: sum(task["seconds"] for task in tasks) for stage, tasks in stages.items()}
    train = record["train"]
    if record.get("phases"):
        known = {"train": train["seconds"], **answering}
        rest = {name: max(0.0, seconds - known.get(name, 0.0)) for name, seconds in _longest(record["phases"]).items()}
        other, base = sum(rest.values()), rest.get("base", 0.0)
    else:  # an older run, of one attempt
        whole = datetime.fromisoformat(record["finished"]) - datetime.fromisoformat(record["started"])
        other, base = max(0.0, whole.total_seconds() - train["seconds"] - sum(answering.values())), 0.0
    tasks = [task for found in stages.values() for task in found]
    return Speed(
        source=folder.name,
        tokens_per_second=train["tokens"] / train["seconds"],
        answers_per_second=sum(task["examples"] for task in tasks) / max(sum(answering.values()), 1e-3),
        memory=train["peak_memory_bytes"],
        disk=size(folder) - size(folder / "checkpoints"),
        checkpoint=max((size(path) for path in folder.glob("checkpoints/checkpoint-*")), default=0),
        other_seconds=other,
        base_seconds=base,
    )


def _longest(phases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of each phase but `data`, which the plan makes: of several attempts, those of the longest.

    A phase can occur twice in an attempt, e.g. `load`. A training that was interrupted is not recorded.
    """
    longest: dict[str, float] = {}
    own: dict[str, float] = {}
    for each in phases:
        if each["phase"] == "data":  # an attempt begins
            own = {}
            continue
        name = each["phase"]
        own[name] = own.get(name, 0.0) + each["seconds"]
        longest[name] = max(own[name], longest.get(name, 0.0))
    return longest


def _short_run(config: Config, cache: Path) -> Config:
    """Return the config of a short run of the same kind, without a tracker and outside the sweep."""
    return replace(
        config,
        trainer=replace(config.trainer, max_steps=STEPS, max_tokens=None, save_steps=10 * STEPS),
        eval=replace(config.eval, limit=EXAMPLES),
        tracking=replace(config.tracking, tracker=Tracker.none),
        sweep=replace(config.sweep, name=None),
        paths=replace(config.paths, outputs=str(cache / MEASURED)),
        plan=False,
    )


def print_plan(runs: Sequence[PlannedRun], problems: Sequence[str]) -> None:
    """Print the plan, and the problems of cells that cannot be run."""
    console = Console(highlight=False)
    # Ids of a sweep begin alike; 80 columns hold the part that differs.
    ids = [run.run_id for run in runs] if len(runs) > 1 else [""]
    same = takewhile(lambda letters: letters[0] == letters[1], zip(min(ids), max(ids), strict=False))
    begin, dash, _ = "".join(letter for letter, _ in same).rpartition("-")
    alike = begin + dash
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("rows", "tokens", "steps", "answers", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        counts = (f"{count:,}" for count in (run.rows, run.tokens, run.steps, run.answers))
        table.add_row(run.run_id.removeprefix(alike), *counts, "done" if run.done else duration(run.seconds))
    if alike:
        console.print(f"Runs {alike}…", markup=False, soft_wrap=True)
    console.print(table)
    left = [run for run in runs if not run.done]
    known, unknown = ([run for run in left if (run.seconds is None) is absent] for absent in (False, True))
    tokens, steps = sum(run.tokens for run in left), sum(run.steps for run in left)
    done = f"{len(runs) - len(left)} done"
    lines = [f"{len(runs)} runs: {done}, {len(left)} left with {tokens:,} tokens, {steps:,} steps"]
    if known:
        time = duration(sum(run.seconds or 0.0 for run in known))
        disks = [run.disk for run in known if run.disk is not None]
        disk = f"{sum(disks) / 1e9:.2f} GB" if len(disks) == len(known) else "unknown"
        sources = "; ".join(dict.fromkeys(run.source for run in known))
        lines.append(f"  {time} one after the other, memory {_memory(known)}, disk {disk} (from {sources})")
    if unknown:
        lines.append(
            f"  {len(unknown)} of unknown speed, about {_memory(unknown)} of memory; plan=measure makes a short run"
        )
    cells: dict[tuple[str, str], str] = {}  # one line per cell: the seeds differ by a few tokens
    for run in runs:
        cells.setdefault((run.run_id.rpartition("-s")[0], run.capacity.partition(" with ")[2]), run.capacity)
    lines += [f"  {name}: {capacity}" for (name, _), capacity in cells.items() if capacity]
    for line in [*lines, *(f"  not possible: {problem}" for problem in problems)]:
        console.print(line, markup=False, soft_wrap=True)


def _memory(runs: Iterable[PlannedRun]) -> str:
    return f"{max(run.memory or 0.0 for run in runs) / 1e9:.1f} GB"


def duration(seconds: float | None) -> str:
    """Return a time in words: seconds, minutes or hours."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
