"""The decorator of the verbs: Hydra's command line, a typed config, and errors in one line."""

import contextlib
import functools
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser  # the parser that hydra.main uses; there is no public name for it
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tometune.config.checks import check
from tometune.config.errors import ConfigError, UserError
from tometune.config.messages import COMPOSITION_ERRORS, explain, one_line
from tometune.config.overrides import CommandLine, find_problems, passes_unseen
from tometune.config.root import Config
from tometune.config.store import ADHOC, CONFIG_NAME, conf_dir, register, typed

log = logging.getLogger(__name__)

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set to 1 by the user to see tracebacks; set to 1 for Hydra so that it raises instead of printing and exiting."""

RESUMED = "train"
"""The verb whose command, given again after an interrupt, goes on from a checkpoint."""

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


def verb(task: Callable[[Config], None]) -> Callable[[], None]:
    """Make a command of `task`: it composes the config from the command line, checks it and hands it over.

    The command exits with status 2 and one line a mistake where the input or the config is wrong, 1 and one line
    where anything else fails, 130 on Ctrl-C. With `--multirun`, a job that fails does not stop the others.
    """

    @functools.wraps(task)
    def command() -> None:
        status = _run(task)
        if status != DONE:
            sys.exit(status)

    return command


def _run(task: Callable[[Config], None]) -> int:
    """Carry the command out and return its exit status."""
    register()
    OmegaConf.register_new_resolver("verb", functools.partial(summary, task), replace=True)
    wanted = os.environ.get(FULL_ERROR)
    statuses: list[int] = []
    try:
        line = _command_line()
        if line.multirun or passes_unseen(line.overrides):  # else a sweep's folder is made, or Hydra raises nothing
            _raise(find_problems(line))
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
                raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, wanted == "1", resumed=name_of(task) == RESUMED)
    if len(statuses) > 1 and any(statuses):
        print(f"{sum(map(bool, statuses))} of {len(statuses)} runs did not finish", file=sys.stderr)
    return max(statuses, key=(DONE, WRONG_INPUT, FAILED).index, default=DONE)


def _job(task: Callable[[Config], None], wanted: str | None, statuses: list[int]) -> Callable[[DictConfig], None]:
    """Return what Hydra runs for each config; it reports its own errors, so that Hydra goes on with the next job."""
    parent = os.getpid()

    @functools.wraps(task)
    def job(composed: DictConfig) -> None:
        try:
            with _environment(FULL_ERROR, wanted):
                config = to_config(composed)
                check(config)
                task(config)
            status = DONE
        except Exception as error:
            if os.getpid() != parent:  # a launcher's worker: the error goes to the parent by way of Hydra
                raise
            status = report(error, wanted == "1")
        statuses.append(status)

    return job


def to_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed for this job into dataclasses.

    A model whose id was set on the command line, but not its name, is named by the last part of its id; the jobs of
    a sweep without a name share the name `adhoc`.

    Raises:
        ConfigError: a value cannot be resolved.
    """
    try:
        config = typed(composed)
    except OmegaConfBaseException as error:
        raise ConfigError([explain(error, [conf_dir()])]) from error
    hydra_config = HydraConfig.get()
    parser = OverridesParser.create()
    keys = {override.key_or_group for override in parser.parse_overrides(list(hydra_config.overrides.task))}
    if "model.id" in keys and "model.name" not in keys:
        config.model.name = slug(config.model.id)
    if hydra_config.mode == RunMode.MULTIRUN and config.sweep.name is None:
        config.sweep.name = ADHOC
    return config


def slug(model_id: str) -> str:
    """Return a file name for a hub id or a folder: its last part, in lower case."""
    last = Path(model_id).expanduser().resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._") or "model"


def report(error: BaseException, traceback_wanted: bool, resumed: bool = False) -> int:
    """Tell an error in one line (a `ConfigError`: one a problem) on stderr and return the exit status.

    Args:
        error: what ended the command.
        traceback_wanted: show the traceback too.
        resumed: whether the same command, after an interrupt, goes on from what was saved.
    """
    if traceback_wanted:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        print(error, file=sys.stderr)
        return WRONG_INPUT
    if isinstance(error, KeyboardInterrupt):
        print("interrupted" + ("; the same command goes on from what was saved" if resumed else ""), file=sys.stderr)
        return INTERRUPTED
    log.debug("failed", exc_info=error)
    hint = "" if traceback_wanted else f" ({FULL_ERROR}=1 shows the traceback)"
    print(f"{type(error).__name__}: {one_line(error)}{hint}", file=sys.stderr)
    return FAILED


def name_of(task: Callable[[Config], None]) -> str:
    """Return the name of the verb: of the file its task is in, also where that runs as `__main__`."""
    return Path(sys.modules[task.__module__].__file__ or "").stem


def summary(task: Callable[[Config], None]) -> str:
    """Return the first line of the docstring of the task's module."""
    return (sys.modules[task.__module__].__doc__ or "").strip().partition("\n")[0]


def _command_line() -> CommandLine:
    """Read the part of the command line that is about the config.

    Raises:
        UserError: an option with dashes is not one of Hydra's.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            arguments = get_args_parser().parse_args()
    except SystemExit as stop:
        if not stop.code:
            raise
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        fix = "keys are set without dashes, as key=value; options like -m stand before or after all keys"
        raise UserError(f"{reason}; {fix}") from None
    if arguments.experimental_rerun is not None:
        raise UserError("--experimental-rerun: reads a pickle, which can run any code; give the overrides instead")
    folder = Path(arguments.config_dir).resolve() if arguments.config_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir={arguments.config_dir}: no such folder")
    several = arguments.multirun or any(text.startswith("+sweep=") for text in arguments.overrides)
    return CommandLine(arguments.overrides, several, folder)


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
