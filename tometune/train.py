"""Mix, fine-tune, score before and after, record: one cell of the table, in one command."""

import logging
from dataclasses import asdict
from functools import partial

from tometune.config.errors import UserError
from tometune.config.main import verb
from tometune.config.root import Config
from tometune.imports import quick_imports
from tometune.inputs import cache_folder, fingerprints
from tometune.run import Run, plain

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Carry the experiment out, or find that it is done, and show what came of it."""
    run = find_run(config)
    if run.completed:
        log.info("%s: finished on %s, nothing to do", run.folder, run.record["finished"])
    else:
        check(run, config)
        experiment(run, config)
    from tometune.evaluation.table import print_run

    print_run(run.folder, run.record, config.eval)


def find_run(config: Config) -> Run:
    """Return the run of this config, found or new.

    Raises:
        UserError: an input is missing; or the machine cannot do it anyway, which is then what is told.
    """
    if config.run is not None:
        raise UserError(f"run={config.run}: only evaluate reads it; train finds the run of its config by itself")
    try:
        return Run.find(config, fingerprints(config))
    except UserError:
        from tometune.models.load import check_machine

        check_machine(config.model)
        raise


def check(run: Run, config: Config) -> None:
    """Find what stops the run on this machine before anything slow is imported, downloaded or made.

    Raises:
        UserError: a folder, a GPU, a package, a key or the hub is missing; the line names the fix.
    """
    from tometune.models.load import check_machine, check_source
    from tometune.tracking import check_tracker
    from tometune.training.requirements import check_optimiser

    run.check_writable()
    check_machine(config.model)
    check_optimiser(config.trainer)
    check_tracker(config.tracking)
    check_source(config.model)


def experiment(run: Run, config: Config) -> None:
    """The method: the data, the model before, the training, the model after.

    Everything that can be wrong with the input is found before the run's folder is made.

    Raises:
        UserError: the model, the data or a task does not allow this run.
    """
    with quick_imports():
        from tometune.data.mix import build_mix
        from tometune.data.tokens import tokenise
        from tometune.evaluation.scoring import score_stage
        from tometune.evaluation.tasks import load_tasks
        from tometune.models.adapter import add_adapter, check_targets, load_adapter
        from tometune.models.load import describe, load_model
        from tometune.models.tokenizer import load_tokenizer
        from tometune.seeding import seed_everything
        from tometune.tracking import start_tracker
        from tometune.training.sft import fit

    cache = cache_folder(config)
    tasks = load_tasks(config.eval, cache)
    tokenizer = load_tokenizer(config.model, cache)
    mix = build_mix(config.data, config.seeds.data, cache)
    tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
    data = {"name": mix.name, "digest": mix.digest, **asdict(tokens.counts)}

    seed_everything(config.seeds.adapter)
    model = load_model(config.model, cache)
    check_targets(model, config.lora.target_modules)
    with (
        run.recording(config, {"model": describe(config.model, model), "data": data}, mix.manifest()),
        start_tracker(
            config.tracking,
            run_id=run.id,
            job_type="train",
            group=config.sweep.name or f"{config.model.name}-{config.data.name}",
            folder=run.folder,
            run_config=plain(config),
        ) as tracker,
    ):
        run.update(tracking=tracker.describe())
        score = partial(
            score_stage,
            tokenizer=tokenizer,
            tasks=tasks,
            config=config.eval,
            folder=run.folder,
            seed=config.seeds.generation,
        )
        if config.eval.base:
            run.add_scores("base", score(model, stage="base"))
        if run.record["train"] is None:
            model = add_adapter(model, config.lora, config.seeds.adapter)
            trained = fit(model, tokenizer, tokens, config, run.folder, tracker.log)
            run.update(train=asdict(trained))
            run.save()
        else:  # a run broken off after its training: the saved adapter is the trained one
            model = load_adapter(model, run.folder / "adapter")
        run.add_scores("tuned", score(model, stage="tuned"))
        tracker.results(run.record, run.folder)
        run.update(tracking=tracker.describe())


if __name__ == "__main__":
    main()
