"""Mix, fine-tune, score before and after, record: one cell of the table, in one command."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tometune.common.distributed import agree, connect, first_alone, is_first
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
from tometune.runs.inputs import cache_folder, fingerprints, mix_of
from tometune.runs.lock import BusyError
from tometune.runs.run import Run
from tometune.sweep import around
from tometune.sweep.calibration import measured, remember, shape
from tometune.sweep.plan import plan_measured
from tometune.sweep.planned import show as show_plan

if TYPE_CHECKING:
    from tometune.data.tokens import Tokens
    from tometune.models.source import ModelSource
    from tometune.training.metrics import OnLog
    from tometune.training.unsloth_process import UnslothProcess

log = logging.getLogger(__name__)


def before_sweep(jobs: Jobs) -> bool:
    """Called once before the runs of a sweep, where the command was started; returns whether there is one to make."""
    return around.begin(jobs, measure)


def after_sweep(jobs: Jobs) -> int:
    """Report on the sweep, say what is missing, and return the command's exit status.

    Called once after the runs, where the command was started.
    """
    from tometune import report

    for folder in around.folders(jobs):
        report.tell(folder, jobs.config)
    return around.end(jobs)


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
    """Carry the experiment out, or find that it is done, and show what came of it.

    Returns:
        ROUGE-L after training, which is what a search goes by; None where the run is left to another process.
    """
    if config.plan:  # of a sweep it is made before the first run
        show_plan([plan_measured(config, first=True, measure=measure)], [])
        return None
    connect()
    start, first = time.perf_counter(), "trl" not in sys.modules
    run = find_run(config)
    run.record = agree(run.record)
    done_before = run.completed
    reason = None if done_before else agree(around.left_alone(run, config))
    if done_before:
        log.info("%s: finished on %s, nothing to do", run.folder, run.record["finished"])
    elif reason is not None:
        log.info("%s: failed and is left so (sweep.retry_failed=false): %s", run.folder, reason)
        return None
    else:
        try:
            with around.attempt(run, config):
                if not run.completed:  # by another process, just before this one came
                    check(config)
                    experiment(run, config)
                    remember_speed(run, config, time.perf_counter() - start, first)
        except BusyError as busy:
            if config.sweep.name is None:
                raise
            log.info("%s: %s is at it; left to that one", run.folder, busy.owner or "another process")
            return None
    if is_first() and (config.sweep.name is None or not done_before):
        from tometune.evaluation.table import print_run

        print_run(run.folder, run.record, config.eval)
    return float(run.record["eval"]["tuned"]["rougeL"])


def find_run(config: Config) -> Run:
    """Return the run of this config, found or new.

    Raises:
        UserError: an input is missing; or the machine cannot do it anyway, which is then what is told.
    """
    try:
        return Run.find(config, fingerprints(config))
    except UserError:
        from tometune.models.load import check_machine

        check_machine(config.model)
        raise


def remember_speed(run: Run, config: Config, seconds: float, first: bool) -> None:
    """Keep what a run took, for the plans of later ones."""
    speed = measured(run.record, seconds, first, run.folder)
    if speed is not None and is_first():
        remember(cache_folder(config), shape(config), speed)


def measure(config: Config) -> None:
    """Make a run in a folder that is thrown away, for the speed that it leaves behind.

    Raises:
        UserError: this machine, the model, the data or a task does not allow it.
    """
    with TemporaryDirectory(prefix="tometune-") as folder:
        start, first = time.perf_counter(), "trl" not in sys.modules
        config = replace(config, paths=replace(config.paths, outputs=folder))
        run = find_run(config)
        check(config)
        experiment(run, config)
        remember_speed(run, config, time.perf_counter() - start, first)


def check(config: Config) -> None:
    """Find what stops the run on this machine before anything slow is imported, downloaded or made.

    Raises:
        UserError: a GPU, a package, a key or the hub is missing; the line names the fix.
    """
    from tometune.evaluation.engines.requirements import check_engine
    from tometune.models.load import check_machine
    from tometune.models.source import check_source
    from tometune.tracking import check_tracker
    from tometune.training.optimisers import check_optimiser

    check_machine(config.model)
    check_optimiser(config.trainer)
    check_engine(config.eval.engine, config.eval.compile is True)
    check_tracker(config.tracking)
    check_source(config.model)


def experiment(run: Run, config: Config) -> None:
    """The method: the data, the model before, the training, the model after.

    Everything that can be wrong with the input is found before the run's folder is made.

    Raises:
        UserError: the model, the data or a task does not allow this run.
    """
    from tometune.models.load import resolve_backend
    from tometune.training.unsloth_process import unsloth_process

    cache = cache_folder(config)
    with ExitStack() as stack:
        process = None
        if resolve_backend(config.model) is Backend.unsloth and run.record.get("train") is None:
            process = stack.enter_context(unsloth_process(cache))  # early, as its imports take half a minute
        with quick_imports():
            from tometune.common.seeding import seed_everything
            from tometune.data.tokens import tokenise
            from tometune.evaluation.scoring import Scorer
            from tometune.evaluation.tasks import load_tasks
            from tometune.models.adapter import check_targets
            from tometune.models.full import check_trainable
            from tometune.models.load import describe, free_memory, load_model
            from tometune.models.source import locate
            from tometune.models.tokenizer import load_tokenizer
            from tometune.tracking import start_tracker

        with first_alone():  # the other processes of torchrun find it all in the cache
            tasks = load_tasks(config.eval)
            source = locate(config.model, cache)
            tokenizer = load_tokenizer(source)
            mix = mix_of(config, cache)
            tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
        data = {"name": mix.name, "digest": mix.digest, **asdict(tokens.counts)}

        seed_everything(config.seeds.adapter)
        model = load_model(source)
        if config.lora.enabled:
            check_targets(model, config.lora.target_modules)
        else:
            check_trainable(model, config.model.id)
        facts = {"model": describe(config.model, model), "data": data}
        stack.enter_context(run.recording(config, facts, mix.manifest()))
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
        scorer = Scorer(tokenizer, tasks, config.eval, run.folder, config.seeds.generation)
        if config.eval.base:
            run.add_scores("base", scorer.stage("base", model))
        if not config.lora.enabled or (process is not None and run.record["train"] is None):
            model = None  # the memory is the training's alone, or the whole model's that it left
            free_memory()
        model = trained(run, config, source, model, tokenizer, tokens, tracker.log, process)
        run.add_scores("tuned", scorer.stage("tuned", model))
        tracker.results(run.record, run.folder)
        run.update(tracking=tracker.describe())


def trained(
    run: Run,
    config: Config,
    source: ModelSource,
    model: Any,
    tokenizer: Any,
    tokens: Tokens,
    on_log: OnLog,
    process: UnslothProcess | None,
) -> Any:
    """Train, unless an interrupted run already finished training, record the result, and return the trained model.

    Args:
        run: whose folder gets what is trained.
        config: of the run.
        source: of the base model.
        model: before training; None where another one is loaded, to be trained apart or as a whole.
        tokenizer: its tokenizer.
        tokens: rows with labels.
        on_log: takes the metrics of each logging step.
        process: the process that trains, if it is another.

    Raises:
        UserError: the model or the machine does not allow it, or the loss is no longer a number.
    """
    with quick_imports():
        from tometune.models.adapter import add_adapter
        from tometune.models.full import load_to_train, tuned
        from tometune.models.load import free_memory
        from tometune.training.inputs import TrainingInputs
        from tometune.training.sft import fit

    if run.record["train"] is not None:
        return tuned(model, source, config.lora, run.folder)
    inputs = TrainingInputs(
        *(source, tokens, config.trainer, config.lora, config.seeds, run.folder.absolute(), cache_folder(config))
    )
    if process is not None:
        run.update(train=process.fit(inputs, on_log))
    elif model is not None:
        model = add_adapter(model, config.lora, config.seeds.adapter)
        run.update(train=asdict(fit(model, tokenizer, inputs, on_log)))
    else:
        whole = load_to_train(source)
        run.update(train=asdict(fit(whole, tokenizer, inputs, on_log)))
        del whole
        free_memory()
    run.save()
    return tuned(None, source, config.lora, run.folder) if model is None else model


if __name__ == "__main__":
    main()
