"""Score a finished run again, on its own tasks or on others, or score any other model.

tometune evaluate run=outputs/RUN_ID eval=pydocs  # a run on other tasks
tometune evaluate model.id=user/name model.quantization=none
tometune evaluate model=smollm2_135m eval=pydocs eval.limit=50  # a trial
tometune evaluate run=outputs/RUN_ID eval.harness=[ifeval]
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.command_line import read_by
from tometune.config.root import Config
from tometune.runs.inputs import RunInputs, cache_folder

if TYPE_CHECKING:
    from tometune.runs.stored import Subject

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Find the run or the model, score it, and print the table."""
    from tometune.evaluation.table import print_run

    subject = scored(config)
    print_run(subject.folder, subject.record, subject.config.eval)


def scored(config: Config) -> Subject:
    """Find the run or the model, score it unless that is done, and return it with its scores."""
    from tometune.models.machine import check_machine
    from tometune.runs.stored import find_subject

    try:
        subject = find_subject(config)
    except UserError:  # if the machine cannot load the model anyway, that is the error to show
        if config.run is None:
            check_machine(config.model)
        raise
    if subject.completed:
        log.info("%s: finished on %s, nothing to do", subject.folder, subject.record["finished"])
    else:
        evaluate(subject)
    return subject


def evaluate(subject: Subject) -> None:
    """Score the base model and, for a run, the tuned model; scores that exist already are reused.

    Raises:
        UserError: the machine, the model or a task does not allow it.
    """
    with quick_imports():
        from tometune.common.seeding import seed_everything, use_deterministic_kernels
        from tometune.evaluation.engines import check_engine
        from tometune.evaluation.scoring import Scorer
        from tometune.evaluation.table import gains
        from tometune.evaluation.tasks import load_tasks
        from tometune.models.load import describe, load_model, load_tuned
        from tometune.models.machine import check_machine, free_memory
        from tometune.models.source import locate
        from tometune.models.tokenizer import load_tokenizer
        from tometune.runs.identity import plain
        from tometune.runs.run import git_state
        from tometune.tracking.tracker import RunLabels, check_tracker, start_tracker

    config = subject.config
    check_machine(config.model)
    check_engine(config.eval.engine)
    check_tracker(config.tracking)
    cache = cache_folder(config)
    source = locate(config.model, cache)
    tokenizer = load_tokenizer(source)
    # Only a run's own scores include its held-out rows, which are found by building its mix again.
    own = subject.run is not None and not subject.separate
    tasks = RunInputs(config, cache, {}).tasks if own else load_tasks(config.eval)
    if not tasks and not config.eval.harness:
        fix = "score a run that was trained with eval=held_out, or name a test set: eval=own eval.path=FILE"
        raise UserError(f"eval={config.eval.name}: no rows are held out here; {fix}")
    seed_everything(config.seeds.generation)
    use_deterministic_kernels(config.trainer.deterministic)
    model = load_model(source)
    settings, commit = read_by("evaluate", plain(config)), git_state()["commit"]
    labels = RunLabels(subject.id, "evaluate", f"evaluate-{config.eval.name}", subject.folder, settings, commit)
    with (
        subject.recording(describe(config.model, model)),
        start_tracker(config.tracking, labels) as tracker,
    ):
        scorer = Scorer(tokenizer, tasks, config.eval, subject.folder, cache, config.seeds.generation)
        if config.eval.base or subject.run is None:
            subject.add_scores("base", scorer.stage("base", model))
        if subject.run is not None:
            if not config.lora.enabled:
                model = None  # frees its memory for the tuned model
                free_memory()
            subject.add_scores("tuned", scorer.stage("tuned", load_tuned(model, source, config.lora, subject.run)))
        tracker.results(subject.record, subject.folder, lambda: gains(subject.folder, subject.record, config.eval))
        if (described := tracker.describe())["tracker"] != "none" or subject.separate:  # else a run keeps its entry
            subject.record["tracking"] = described


if __name__ == "__main__":
    main()
