"""The inputs of a run by content: what identifies each of them without loading it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.config.data import Contamination, PoolOrder
from tometune.config.eval import TaskKind
from tometune.config.root import Config

if TYPE_CHECKING:
    from tometune.data.contamination.overlaps import HeldOut, MixOverlaps
    from tometune.data.mix import Mix


def cache_folder(config: Config) -> Path:
    """Return the folder of converted models, standardised mixes and tokens, as an absolute path."""
    return Path(config.paths.cache).expanduser().resolve()


def fingerprints(config: Config) -> dict[str, str]:
    """Return the content of each input by its key in the config; imports no torch and loads nothing.

    For what is on the hub it asks for the commit, once a process.

    Raises:
        UserError: a file or folder is missing.
    """
    from tometune.data import sources

    found = {"data.base": sources.fingerprint(config.data.base, "data.base")}
    if config.data.pool is not None:
        found["data.pool"] = sources.fingerprint(config.data.pool, "data.pool")
        if config.data.pool.order is PoolOrder.best:
            from tometune.models import quality_scorer

            found["data.scorer"] = quality_scorer.fingerprint(config.data.scorer)
    return found | evaluation_fingerprints(config)


def evaluation_fingerprints(config: Config) -> dict[str, str]:
    """Return the content of what is scored and of what it is scored on: the model and the tasks.

    Raises:
        UserError: a file or folder is missing.
    """
    from tometune.evaluation import sources
    from tometune.models import source

    found = {"model": source.fingerprint(config.model)}
    for name, task in config.eval.tasks.items():
        found[f"eval.tasks.{name}"] = sources.fingerprint(task, f"eval.tasks.{name}")
    return found


def mix_of(config: Config, cache: Path) -> "Mix":
    """Return the mix of a config; the evaluation's texts are read only where `data.contamination` asks for them.

    Raises:
        UserError: see `build_mix`; with `data.contamination=fail`, a row shares a run of words with an example.
    """
    from tometune.data.contamination.overlaps import HeldOut
    from tometune.data.mix import build_mix
    from tometune.evaluation.held_out import held_out_texts
    from tometune.models.source import locate
    from tometune.models.tokenizer import load_tokenizer

    report = config.data.contamination is Contamination.report
    held_out = None if report else HeldOut(held_out_texts(config.eval))
    mix = build_mix(
        config.data,
        config.seeds.data,
        cache,
        lambda: load_tokenizer(locate(config.model, cache, weights=False)),
        held_out,
    )
    if held_out is not None and config.data.contamination is Contamination.fail:
        _refuse(contamination_of(config, mix, held_out, cache))
    return mix


def held_out_where_reached(config: Config) -> tuple["HeldOut", dict[str, str]]:
    """Return the evaluation's texts for a report, and why those of a task are missing, where the hub is out of reach.

    Raises:
        UserError: a local task is missing or broken, or any task where `data.contamination` is not `report`.
    """
    from tometune.data.contamination.overlaps import HeldOut
    from tometune.evaluation.held_out import held_out_of

    texts, missing = [], {}
    for name, task in config.eval.tasks.items():
        try:
            texts += held_out_of(name, task)
        except UserError as error:
            if task.kind is not TaskKind.hub or config.data.contamination is not Contamination.report:
                raise
            missing[name] = str(error)
    return HeldOut(texts), missing


def contamination_of(config: Config, mix: "Mix", held_out: "HeldOut", cache: Path) -> "MixOverlaps":
    """Return what the rows of a mix share with the evaluation."""
    from tometune.data.contamination.overlaps import of_mix, overlaps
    from tometune.data.standardise import standardise

    sources = {"base": config.data.base, "pool": config.data.pool}
    found = {
        origin: overlaps(standardise(source, f"data.{origin}", cache), held_out, cache)
        for origin, source in sources.items()
        if source is not None and origin in mix.facts
    }
    return of_mix(mix.row_ids, found, held_out)


def _refuse(found: "MixOverlaps") -> None:
    """Stop where a mix overlaps the evaluation."""
    if not found.overlapping:
        return
    first = found.shown[0]
    examples = ", ".join(f"{count:,} examples of {task}" for task, count in found.touched.items())
    shared = " ".join(first["shared"].split()[:13])
    raise UserError(
        f"data.contamination=fail: {found.overlapping:,} of {found.rows:,} rows share a run of words with {examples}, "
        f"e.g. {first['source']} with {first['example']}: {shared!r}; leave them out by data.contamination=drop"
    )
