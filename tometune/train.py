"""Mix, score, fine-tune, score again and record: one cell of the table, in one command."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from tempfile import TemporaryDirectory

from tometune.common.distributed import agree, connect, is_first
from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
from tometune.config.chat import ONLY_CHAT
from tometune.config.export import ONLY_EXPORT
from tometune.config.jobs import Jobs
from tometune.config.main import Hooks, verb
from tometune.config.model import Backend
from tometune.config.root import Config
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.runs.identity import plain
from tometune.runs.inputs import RunInputs
from tometune.runs.lock import BusyError
from tometune.runs.run import Run
from tometune.sweep import hooks
from tometune.sweep.calibration import measured, remember, shape
from tometune.sweep.plan import plan_measured
from tometune.sweep.planned import show as show_plan

log = logging.getLogger(__name__)


def before_sweep(jobs: Jobs) -> bool:
    """Called once before the runs of a sweep, in the process that the user started; returns whether any is left."""
    return hooks.begin(jobs, measure)


def after_sweep(jobs: Jobs) -> int:
    """Report on the sweep and list missing runs; returns the exit status. Called once, in the user's process."""
    from tometune import report

    for folder in hooks.folders(jobs):
        report.tell(folder, jobs.config)
    return hooks.end(jobs)


@partial(
    verb,
    hooks=Hooks(before_sweep, after_sweep),
    ignores={
        "run": "only evaluate, export and chat read it; train finds the run of its config by itself",
        **ONLY_CHAT,
        **ONLY_EXPORT,
    },
)
def main(config: Config) -> float | None:
    """Make the run of a config, or find it finished, and print its scores.

    Returns:
        ROUGE-L of the tuned model, which a search maximises; None if there is no run to score.
    """
    if config.plan:  # a sweep is planned before its first run
        show_plan([plan_measured(config, first=True, measure=measure)], [])
        return None
    connect()
    inputs, run = find_run(config)
    run.record = agree(run.record)
    already_done = run.completed
    reason = None if already_done else agree(hooks.skip_reason(run, config))
    if already_done:
        log.info("%s: finished on %s, nothing to do", run.folder, run.record["finished"])
    elif reason is not None:
        log.info("%s: skipped, it failed before and sweep.retry_failed=false: %s", run.folder, reason)
        return None
    else:
        try:
            with hooks.attempt(run, config):
                if not run.completed:  # another process may have finished it in the meantime
                    timed_experiment(run, inputs)
        except BusyError as busy:
            if config.sweep.name is None:
                raise
            log.info("%s: already being run by %s; skipped", run.folder, busy.owner or "another process")
            return None
    if is_first() and (config.sweep.name is None or not already_done):
        from tometune.evaluation.table import print_run

        print_run(run.folder, run.record, config.eval)
    return float(run.record["eval"]["tuned"]["rougeL"])


def find_run(config: Config) -> tuple[RunInputs, Run]:
    """Identify the inputs of a config and find its run, or name a new one.

    Raises:
        UserError: an input is missing; or the machine cannot make the run anyway, which is then the error to show.
    """
    try:
        inputs = RunInputs.resolve(config)
        return inputs, Run.find(config, inputs.fingerprints)
    except UserError:
        from tometune.models.load import check_machine

        check_machine(config.model)
        raise


def experiment(run: Run, inputs: RunInputs) -> None:
    """The method: resolve the inputs, score the base model, train, score the tuned model, record.

    Everything that can be wrong with the inputs is found before the run's folder is made.

    Raises:
        UserError: the machine, the model, the data or a task does not allow this run.
    """
    from tometune.models.load import resolve_backend
    from tometune.training.unsloth_process import worker

    config = inputs.config
    check_requirements(config)
    with ExitStack() as stack:
        process = None
        if run.record.get("train") is None and resolve_backend(config.model) is Backend.unsloth:
            process = stack.enter_context(worker(inputs.cache))  # first, because its imports take half a minute
        with quick_imports():
            from tometune.common.seeding import seed_everything
            from tometune.evaluation.scoring import Scorer
            from tometune.models.full import check_trainable
            from tometune.models.load import describe, load_model
            from tometune.tracking import start_tracker
            from tometune.training.tuned_model import tuned_model

        inputs.load()
        seed_everything(config.seeds.adapter)
        model = load_model(inputs.model)
        check_trainable(model, config.model.id, config.lora)
        data = {"name": inputs.mix.name, "digest": inputs.mix.digest, **asdict(inputs.tokens.counts)}
        facts = {"model": describe(config.model, model), "data": data}
        stack.enter_context(run.recording(config, facts, inputs.mix.manifest()))
        tracker = stack.enter_context(
            start_tracker(
                config.tracking if is_first() else TrackingConfig(tracker=Tracker.none),
                run_id=run.id,
                job_type="train",
                group=config.sweep.name or f"{config.model.name}-{config.data.name}",
                folder=run.folder,
                run_config=plain(config),
            )
        )
        run.update(tracking=tracker.describe())

        scorer = Scorer(inputs.tokenizer, inputs.tasks, config.eval, run.folder, inputs.cache, config.seeds.generation)
        if config.eval.base:
            run.add_scores("base", scorer.stage("base", model))
        model = tuned_model(run, inputs, model, tracker.log, process)
        run.add_scores("tuned", scorer.stage("tuned", model))
        tracker.results(run.record, run.folder)
        run.update(tracking=tracker.describe())


def check_requirements(config: Config) -> None:
    """Check this machine before anything slow is imported, downloaded or made.

    Raises:
        UserError: a GPU, a package, a key or the hub is missing; the line names the fix.
    """
    from tometune.evaluation.engines.base import check_engine
    from tometune.models.load import check_machine
    from tometune.models.source import check_source
    from tometune.tracking import check_tracker
    from tometune.training.optimisers import check_optimiser

    check_machine(config.model)
    check_optimiser(config.trainer)
    check_engine(config.eval.engine, config.eval.compile is True)
    check_tracker(config.tracking)
    check_source(config.model)


def timed_experiment(run: Run, inputs: RunInputs) -> None:
    """Make a run and keep its speed, for the plans of later runs."""
    start, first = time.perf_counter(), "trl" not in sys.modules
    experiment(run, inputs)
    speed = measured(run.record, time.perf_counter() - start, first, run.folder)
    if speed is not None and is_first():
        remember(inputs.cache, shape(inputs.config), speed)


def measure(config: Config) -> None:
    """Make a run in a temporary folder, for the speed that it leaves behind (`plan=measure`).

    Raises:
        UserError: the machine, the model, the data or a task does not allow it.
    """
    with TemporaryDirectory(prefix="tometune-") as folder:
        inputs, run = find_run(replace(config, paths=replace(config.paths, outputs=folder)))
        timed_experiment(run, inputs)


if __name__ == "__main__":
    main()
