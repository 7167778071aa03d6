"""The decorator of the verbs: Hydra's command line, a typed config, and errors in one line."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tometune.common.distributed import processes
from tometune.common.errors import ConfigError, UserError
from tometune.common.signals import Stopped, told_to_stop
from tometune.config.checks import check
from tometune.config.command_line import CommandLine, read_command_line, unread, with_plus
from tometune.config.endings import DONE, FAILED, FULL_ERROR, WRONG_INPUT, report
from tometune.config.jobs import Jobs, jobs_of, to_config
from tometune.config.messages import COMPOSITION_ERRORS, explain
from tometune.config.overrides import find_problems, passes_unseen
from tometune.config.root import Config
from tometune.config.store import CONFIG_NAME, conf_dir, register

RESUMED = ("train", "prepare", "evaluate")
"""The verbs whose command, given again after it was stopped, goes on from what was saved."""


@dataclass(frozen=True)
class Hooks:
    """What a verb does around a sweep, once, in the process that the user started."""

    before: Callable[[Jobs], bool]
    """Called before the first run; returns whether anything is to be run at all."""

    after: Callable[[Jobs], int]
    """Called after the last run, whatever became of them; returns the command's exit status."""


Task = Callable[[Config], object]
"""A verb's own function; what it returns is the objective of a search."""


def verb(task: Task, hooks: Hooks | None = None, ignores: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Make a command of `task`: it composes the config from the command line, checks it and hands it over.

    The command exits with status 2 and one line a mistake where the input or the config is wrong, 1 and one line
    where anything else fails, and 128 and the signal's number where it is told to stop (SIGINT, which is Ctrl-C, 130;
    SIGTERM 143; SIGHUP 129), wherever it is. With `--multirun`, a job that fails does not stop the others.

    Args:
        task: the verb's own function.
        hooks: what it does around a sweep.
        ignores: keys and groups that it does not read, each with what to say to a user who sets them.
    """

    @functools.wraps(task)
    def command() -> None:
        try:
            with told_to_stop():
                status = _run(task, hooks, ignores or {})
        except (KeyboardInterrupt, Stopped) as error:
            status = report(error, os.environ.get(FULL_ERROR) == "1", resumed=name_of(task) in RESUMED)
        if status != DONE:
            sys.exit(status)

    return command


def _run(task: Task, hooks: Hooks | None, ignores: Mapping[str, str]) -> int:
    """Carry the command out and return its exit status."""
    register()
    OmegaConf.register_new_resolver("verb", functools.partial(summary, task), replace=True)
    wanted = os.environ.get(FULL_ERROR)
    statuses: list[int] = []
    try:
        sys.argv[1:] = with_plus(sys.argv[1:])
        line = read_command_line()
        _raise(unread(line, ignores))
        if line.multirun or passes_unseen(line.overrides):  # else a sweep's folder is made, or Hydra raises nothing
            _raise(find_problems(line))
        jobs = _sweep(line) if hooks is not None and not line.only_shows else None
        if hooks is not None and jobs is not None and not hooks.before(jobs):
            return hooks.after(jobs)
        with _environment(FULL_ERROR, "1"):
            decorate = hydra.main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base="1.3")
            command = decorate(_job(task, wanted, statuses))
            try:
                command()
            except UserError:
                raise
            except Exception as error:
                _raise(find_problems(line), error)
                if isinstance(error, COMPOSITION_ERRORS):
                    _raise([explain(error, line.folders)], error)
                if jobs is None:
                    raise
                report(error, wanted == "1")  # a launcher broke; what its runs came to is told below
        if hooks is not None and jobs is not None:
            return hooks.after(jobs)
    except Exception as error:
        return report(error, wanted == "1")
    if len(statuses) > 1 and any(statuses):
        print(f"{sum(map(bool, statuses))} of {len(statuses)} runs did not finish", file=sys.stderr)
    return max(statuses, key=(DONE, WRONG_INPUT, FAILED).index, default=DONE)


def _sweep(line: CommandLine) -> Jobs | None:
    """Return the runs of a sweep; None for a single run, or where Hydra will say what is wrong with the line."""
    try:
        return jobs_of(line)
    except COMPOSITION_ERRORS:
        return None


def _job(task: Task, wanted: str | None, statuses: list[int]) -> Callable[[DictConfig], object]:
    """Return what Hydra runs for each config; it reports its own errors, so that Hydra goes on with the next job.

    A launcher pickles it into other processes, where `statuses` is a copy that nobody reads: what became of those
    runs is in their folders.
    """

    @functools.wraps(task)
    def job(composed: DictConfig) -> object:
        found = None
        try:
            os.chdir(
                HydraConfig.get().runtime.cwd
            )  # where the command was given: a ray cluster's workers are elsewhere
            with _environment(FULL_ERROR, wanted):
                config = to_config(composed, HydraConfig.get())
                check(config)
                found = task(config)
            status = DONE
        except Exception as error:
            status = report(error, wanted == "1")
            if processes() > 1:  # the others may be in the middle of it; torchrun ends them all
                sys.exit(status)
        statuses.append(status)
        return found

    return job


def name_of(task: Task) -> str:
    """Return the name of the verb: of the file its task is in, also where that runs as `__main__`."""
    return Path(sys.modules[task.__module__].__file__ or "").stem


def summary(task: Task) -> str:
    """Return the first line of the docstring of the task's module."""
    return (sys.modules[task.__module__].__doc__ or "").strip().partition("\n")[0]


def _raise(problems: list[str], cause: Exception | None = None) -> None:
    """Raise a `ConfigError` if there are problems."""
    if problems:
        raise ConfigError(problems) from cause


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set or unset an environment variable for a while."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
