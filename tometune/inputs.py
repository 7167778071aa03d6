"""The inputs of a run by content: what identifies each of them without loading it."""

from pathlib import Path

from tometune.config.data import PoolOrder
from tometune.config.root import Config


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
            from tometune.data.clean import scorer

            found["data.scorer"] = scorer.fingerprint(config.data.scorer)
    return found | evaluation_fingerprints(config)


def evaluation_fingerprints(config: Config) -> dict[str, str]:
    """Return the content of what is scored and of what it is scored on: the model and the tasks.

    Raises:
        UserError: a file or folder is missing.
    """
    from tometune.evaluation import sources
    from tometune.models import load

    found = {"model": load.fingerprint(config.model)}
    for name, task in config.eval.tasks.items():
        found[f"eval.tasks.{name}"] = sources.fingerprint(task, f"eval.tasks.{name}")
    return found
