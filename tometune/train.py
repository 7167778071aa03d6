"""Mix, score, fine-tune, score again and record: one cell of the table in one command.

tometune train +experiment=quickstart  # a small model; no GPU, no downloads
tometune train data=mix_300k trainer=rtx24gb  # one run on a GPU with 24 GB
tometune train data=mine data.path=mine.jsonl
tometune train -m +sweep=table plan=true  # what the whole table costs
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from tometune.common.distributed import agree, connect, is_first
from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.command_line import read_by
from tometune.config.model import Backend
from tometune.config.root import Config
from tometune.config.sweep_cells import Jobs
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.runs.finished import damage, reopen
from tometune.runs.identity import plain
from tometune.runs.inputs import RunInputs
from tometune.runs.lock import BusyError
from tometune.runs.run import Run
from tometune.runs.stored import run_of_older_version
from tometune.sweep import hooks
from tometune.sweep.prefetch import prefetched

if TYPE_CHECKING:
    from tometune.training.metrics import OnLog
    from tometune.training.unsloth_process import UnslothProcess

log = logging.getLogger(__name__)


def sweep(jobs: Jobs, make_runs: Callable[[], None]) -> int:
    """Make the runs of a sweep that are missing and report on it, or print its plan; returns the exit status."""
    if jobs.config.plan:
        from tometune.sweep.plan import plan_sweep

        return plan_sweep(jobs, measure)
    from tometune import report
    from tometune.models.base_models import base_models

    if hooks.begin_sweep(jobs):
        with prefetched(jobs), base_models.shared():
            make_runs()
    reported = {path: report.report_finished(path, jobs.config) for path in hooks.folders_with_results(jobs)}
    return hooks.end_sweep(jobs, reported)


@partial(verb, sweep=sweep)
def main(config: Config) -> float | None:
    """Make the run of a config, or find it finished, and print its scores.

    Returns:
        ROUGE-L of the tuned model, which a search maximises; None for a plan, a skipped run, or a
        run that another process makes.
    """
    if config.plan:  # a sweep is planned before its first run
        from tometune.sweep.plan import plan_run, print_plan

        print_plan([plan_run(config, measure)], [])
        return None
    run, already_done = make_run(config)
    if run is None:
        return None
    if is_first() and (config.sweep.name is None or not already_done):
        from tometune.evaluation.table import print_run

        then = None
        if config.sweep.name is None and config.eval.base:
            then = f"tometune chat run={run.id if already_done else 'latest'} against=base"
        print_run(run.folder, run.record, config.eval, then)
    return float(run.record["eval"]["tuned"]["rougeL"])


def make_run(config: Config) -> tuple[Run | None, bool]:
    """Make the run of a config, or find it finished.

    Returns:
        The run, None if it is skipped or another process makes it; and whether it was finished before.
    """
    connect()
    inputs, run = find_run(config)
    run.record = agree(run.record)
    already_done = agree(run.completed and not damage(run.folder, run.record))
    reason = None if already_done else agree(hooks.skip_reason(run, config))
    if already_done:
        log.info("%s: finished on %s, nothing to do", run.folder, run.record["finished"])
    elif reason is not None:
        log.info("%s: skipped, it failed before and sweep.retry_failed=false: %s", run.folder, reason)
        return None, False
    else:
        try:
            with hooks.attempt(run, config):
                # Another process may have finished it in the meantime.
                if agree(not run.completed or bool(damage(run.folder, run.record))):
                    reopen(run)
                    if not run.record and (older := run_of_older_version(config, run.id)):
                        log.info("%s: made by an older version, whose results can differ; starting a new run", older)
                    experiment(run, inputs)
        except BusyError as busy:
            if config.sweep.name is None:
                raise
            log.info("%s: already being run by %s; skipped", run.folder, busy.owner or "another process")
            return None, False
    return run, already_done


def find_run(config: Config) -> tuple[RunInputs, Run]:
    """Identify the inputs of a config and find its run, or name a new one.

    Raises:
        UserError: an input is missing; or this machine cannot make such a run at all, which is reported first.
    """
    try:
        inputs = RunInputs.resolve(config)
        return inputs, Run.find(config, inputs.fingerprints)
    except UserError:
        from tometune.models.machine import check_machine

        check_machine(config.model)
        raise


def experiment(run: Run, inputs: RunInputs) -> None:
    """The method: make the inputs, score the base model, train, score the tuned model, record.

    Everything that can be wrong with the inputs is found before the run's folder is made.

    Raises:
        UserError: the machine, the model, the data or a task does not allow this run.
    """
    from tometune.models.machine import resolve_backend
    from tometune.training.unsloth_process import unsloth_process

    config = inputs.config
    check_requirements(config)
    with ExitStack() as stack:
        process, backend = None, resolve_backend(config.model, config.trainer.loss_type)
        if run.record.get("train") is None and backend is Backend.unsloth:
            process = stack.enter_context(unsloth_process(inputs.cache))  # first: its imports take half a minute
        with quick_imports():
            from tometune.common.seeding import seed_everything, use_deterministic_kernels
            from tometune.evaluation.scoring import Scorer
            from tometune.evaluation.table import gains
            from tometune.models.base_models import base_models, is_small
            from tometune.models.load import check_trainable, describe
            from tometune.models.machine import free_memory
            from tometune.tracking.tracker import RunLabels, start_tracker

        with run.phase("data"):
            inputs.load()
        seed_everything(config.seeds.adapter)
        use_deterministic_kernels(config.trainer.deterministic)
        with run.phase("load"):
            model = base_models.load(inputs.model_source)
        check_trainable(model, config.model.id, config.lora, config.trainer.packing)
        data = {"name": inputs.mix.name, "digest": inputs.mix.digest, **asdict(inputs.tokens.counts)}
        facts = {"model": describe(config.model, model, backend), "data": data}
        stack.enter_context(run.recording(config, facts, inputs.mix.manifest()))
        tracker = stack.enter_context(
            start_tracker(
                config.tracking if is_first() else TrackingConfig(tracker=Tracker.none),
                RunLabels(
                    run_id=run.id,
                    job_type="train",
                    group=config.sweep.name or f"{config.model.name}-{config.data.name}",
                    folder=run.folder,
                    config=read_by("train", plain(config)),
                    commit=run.record["git"]["commit"],
                ),
            )
        )
        run.record["tracking"] = tracker.describe()

        scorer = Scorer(inputs.tokenizer, inputs.tasks, config.eval, run.folder, inputs.cache, config.seeds.generation)
        if config.eval.base:
            with run.phase("base"):
                run.add_scores("base", scorer.stage("base", model))
        if not config.lora.enabled or (process is not None and not is_small(model)):
            model = None  # the training loads another one, which needs the memory
        free_memory()
        model = tuned_model(run, inputs, model, tracker.log, process)
        with run.phase("tuned"):
            run.add_scores("tuned", scorer.stage("tuned", model))
        tracker.results(run.record, run.folder, lambda: gains(run.folder, run.record, config.eval))
        run.record["tracking"] = tracker.describe()
    if config.lora.enabled:
        base_models.keep(model)


def tuned_model(run: Run, inputs: RunInputs, model: Any, on_log: OnLog, process: UnslothProcess | None) -> Any:
    """Train, unless an interrupted run already finished training; record the result and return the tuned model.

    `model` is the base model, to which the adapter is added. It is None if it had to make room for another one, which
    Unsloth's `process` loads, and full fine-tuning (`lora=none`), in float32.

    Raises:
        UserError: the model or the machine is not suitable, or the loss is not finite.
    """
    with quick_imports():
        from tometune.evaluation.likelihood import loss_rows
        from tometune.models.load import add_adapter, load_to_train, load_tuned
        from tometune.models.machine import free_memory
        from tometune.training.batches import TrainingInputs
        from tometune.training.metrics import replay
        from tometune.training.sft import fit

    config, source = inputs.config, inputs.model_source
    if run.record["train"] is not None:
        replay(run.folder / "metrics.jsonl", on_log)
        with run.phase("load"):
            return load_tuned(model, source, config.lora, run.folder)
    evaluates = config.trainer.eval_steps is not None
    training = TrainingInputs(
        source=source,
        tokens=inputs.tokens,
        trainer=config.trainer,
        lora=config.lora,
        seeds=config.seeds,
        folder=run.folder.absolute(),
        cache=inputs.cache,
        loss_rows=loss_rows(inputs.tasks, inputs.tokenizer, config.trainer.max_length) if evaluates else (),
    )
    with run.phase("train"):
        if process is not None:
            result = process.fit(training, on_log)
        elif config.lora.enabled:
            model = add_adapter(model, config.lora, config.seeds.adapter)
            result = fit(model, inputs.tokenizer, training, on_log)
        else:
            result = fit(load_to_train(source), inputs.tokenizer, training, on_log)
            free_memory()
        run.record["train"] = result
        run.save()
    if process is None and model is not None:
        return model
    with run.phase("load"):
        return load_tuned(model, source, config.lora, run.folder)


def check_requirements(config: Config) -> None:
    """Check this machine before anything slow is imported, downloaded or made.

    Raises:
        UserError: a GPU, a package, a key or the hub is missing; the line names the fix.
    """
    from tometune.evaluation.engines import check_engine
    from tometune.models.machine import check_machine
    from tometune.models.source import check_source
    from tometune.tracking.tracker import check_tracker
    from tometune.training.steps import check_optimiser

    check_machine(config.model)
    check_optimiser(config.trainer)
    check_engine(config.eval.engine)
    check_tracker(config.tracking)
    check_source(config.model)


def measure(config: Config) -> None:
    """Make a short run, whose speed is then known (`plan=measure`).

    Raises:
        UserError: the machine, the model, the data or a task does not allow it.
    """
    inputs, run = find_run(config)
    if not run.completed:
        with hooks.attempt(run, config):
            experiment(run, inputs)


if __name__ == "__main__":
    main()
