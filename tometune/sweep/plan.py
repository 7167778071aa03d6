"""The plan of a command: its runs, what each is made of, which are done, and how long the others will take."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.config.root import Config
from tometune.config.tracking import Tracker
from tometune.runs.inputs import RunInputs
from tometune.runs.run import Run
from tometune.sweep.calibration import Speed, recall, shape

STEPS = 12
"""Steps of a run that is made to be measured."""

EXAMPLES = 16
"""Answers a task of such a run, before and after its training."""

_not_measurable: set[str] = set()
"""Kinds of runs that this machine cannot make; tried once a process."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan."""

    run_id: str
    rows: int
    tokens: int
    """Tokens of training, of the steps that are made."""

    steps: int
    examples: int
    """Answers of evaluation, over tasks and stages."""

    done: bool
    seconds: float | None
    """Foretold; None until one run of its kind was made."""

    memory: float | None
    disk: float | None


def plan_measured(config: Config, first: bool, measure: Callable[[Config], None]) -> PlannedRun:
    """Return the plan of one run, after a short run of its kind where none was made on this machine.

    Args:
        config: of the run.
        first: whether a process begins with it, and so imports everything.
        measure: makes the short run, which leaves its speed in the calibration.

    Raises:
        UserError: the data or a task does not allow the run.
    """
    planned = plan_run(config, first)
    if planned.done or planned.seconds is not None or processes() > 1:
        return planned
    key = shape(config)
    if key not in _not_measurable:
        print(f"no run of this kind was made here: measuring {STEPS} steps and {EXAMPLES} answers", file=sys.stderr)
        try:
            measure(shortened(config))
        except UserError as error:
            _not_measurable.add(key)
            print(f"not measured: {error}", file=sys.stderr)
    return plan_run(config, first)


def shortened(config: Config) -> Config:
    """Return the config of a short run of the same kind, that nobody is told of."""
    return replace(
        config,
        trainer=replace(config.trainer, max_steps=STEPS, save_steps=10 * STEPS),
        eval=replace(config.eval, limit=EXAMPLES),
        tracking=replace(config.tracking, tracker=Tracker.none),
        sweep=replace(config.sweep, name=None),
        plan=False,
    )


def plan_run(config: Config, first: bool) -> PlannedRun:
    """Return the plan of one run; builds its data, which the run then finds in the cache, and loads no model.

    Args:
        config: of the run.
        first: whether a process begins with it, and so imports everything.

    Raises:
        UserError: the data or a task does not allow the run.
    """
    from tometune.data.packing import pack
    from tometune.training.steps import checkpoints_kept, effective_batch, in_packs, steps_of

    inputs = RunInputs.resolve(config)
    run = Run.find(config, inputs.fingerprints)
    tokens = inputs.tokens
    rows = pack(tokens.dataset, config.trainer.max_length) if in_packs(config.trainer) else tokens.dataset
    an_epoch = math.ceil(len(rows) / effective_batch(config.trainer))
    steps = steps_of(config.trainer, len(rows))
    stages = ("base", "tuned") if config.eval.base else ("tuned",)
    examples = {f"{stage}/{task.name}": len(task.examples) for task in inputs.tasks for stage in stages}
    trained = round(tokens.counts.tokens * steps / an_epoch)
    speed = recall(inputs.cache, shape(config))
    return PlannedRun(
        run_id=run.id,
        rows=len(inputs.mix.row_ids),
        tokens=trained,
        steps=steps,
        examples=sum(examples.values()),
        done=run.completed,
        seconds=_seconds(speed, trained, examples, first),
        memory=speed.memory if speed else None,
        disk=speed.disk + speed.checkpoint * checkpoints_kept(config.trainer, steps) if speed else None,
    )


def _seconds(speed: Speed | None, tokens: int, examples: dict[str, int], first: bool) -> float | None:
    """Return what a run will take; a task that no run of its kind was scored on takes as long as the others."""
    if speed is None or not speed.evaluation:
        return None
    usual = sum(speed.evaluation.values()) / len(speed.evaluation)
    answers = sum(count * speed.evaluation.get(name, usual) for name, count in examples.items())
    known = (speed.start, speed.overhead) if first else (speed.overhead, speed.start)
    beside = next((seconds for seconds in known if seconds is not None), 0.0)
    return beside + tokens * speed.train + answers
