"""Turns a verb into a command: composes and checks the config, starts the run or sweep, reports errors in one line."""

import contextlib
import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tometune.common.distributed import disconnect, is_first, processes
from tometune.common.errors import UserError, one_line
from tometune.common.files import NO_RIGHTS, disk_errors, in_the_way
from tometune.common.process import Stopped, stop_signals
from tometune.config.command_line import check_keys, read_command_line, show
from tometune.config.error_messages import composition_errors
from tometune.config.root import CONFIG_NAME, Config, check, conf_dir, register
from tometune.config.sweep_cells import Jobs, jobs_of, to_config

log = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT = 0, 1, 2  # exit statuses; a task that returns an `IntEnum` sets its own

RESUMED = ("train", "prepare", "evaluate")
"""Verbs whose command resumes from what it saved when it is repeated after a stop."""

Task = Callable[[Config], object]  # a verb's own function; its return value is the objective of a search
Sweep = Callable[[Jobs, Callable[[], None]], int]
"""A verb's function for a whole sweep, called in the process that the user started.

Arguments: the runs, and a function that makes them, which does not raise if a run fails. Returns the exit status.
"""


def verb(task: Task, sweep: Sweep | None = None, whole_sweep: bool = False) -> Callable[[], None]:
    """Return the command that composes and checks a config and calls `task` with it.

    Exit status: 0 for success; 2 if the user's input or config is wrong (in a sweep: for every run), 1 for any other
    error, 128 + the signal's number if a signal stopped it. With `--multirun`, a failed run does not stop the others.
    With `whole_sweep` the verb (`report`) reads a sweep instead of making its runs: `+sweep=NAME` gives one config.
    """

    @functools.wraps(task)
    def command() -> None:
        try:
            with stop_signals():
                status = _run(task, sweep, whole_sweep)
        except (Exception, KeyboardInterrupt, Stopped) as error:
            status = report_error(error, name_of(task) in RESUMED)
        if status != DONE:
            sys.exit(status)
        disconnect()

    return command


def _run(task: Task, sweep: Sweep | None, whole_sweep: bool) -> int:
    name = name_of(task)
    register()
    line = read_command_line()
    if line.options is not None and line.options.help:
        from tometune.config.help import help_text

        print(help_text(name, sys.modules[task.__module__].__doc__ or name, line.extra_folder))
        return DONE
    with composition_errors(line.extra_folder):
        if line.options is None:
            check_keys(name, line.overrides)
        jobs = None if line.options is not None or (whole_sweep and not line.multirun) else jobs_of(line)
        with initialize_config_dir(str(conf_dir()), job_name=name, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            if line.options is not None:
                show(hydra, line)
                return DONE
            statuses: list[int] = []
            job = _job(task, statuses)
            if jobs is None:
                hydra.run(CONFIG_NAME, job, [*line.overrides, "hydra.mode=RUN"])
            else:
                folder = Path(jobs.config.paths.multirun)

                def make_runs() -> None:
                    try:
                        with disk_errors(folder, "paths.multirun"):  # it gets Hydra's multirun.yaml
                            hydra.multirun(CONFIG_NAME, job, [*line.overrides, "hydra.mode=MULTIRUN"])
                    except UserError:
                        raise
                    except Exception as error:  # a launcher broke; some of its runs may have finished
                        statuses.append(report_error(error))

                if sweep is not None:
                    status = sweep(jobs, make_runs)
                    # A run of a search that failed before it had a name is in no list.
                    return FAILED if jobs.search and status == DONE and any(statuses) else status
                make_runs()
    if len(statuses) > 1 and any(statuses):
        print(f"{sum(map(bool, statuses))} of {len(statuses)} runs did not finish", file=sys.stderr)
    kinds = set(statuses) or {DONE}
    return kinds.pop() if len(kinds) == 1 else FAILED


def _job(task: Task, statuses: list[int]) -> Callable[[DictConfig], object]:
    """Return the function that Hydra calls with each composed config. It reports its errors, so that a sweep continues.

    It appends the exit status to `statuses`. A launcher may run a pickled copy in another process, whose list is lost;
    the states of those runs are read from their folders.
    """

    def job(composed: DictConfig) -> object:
        result = None
        try:
            os.chdir(HydraConfig.get().runtime.cwd)  # the workers of a ray cluster start in another folder
            config = to_config(composed, HydraConfig.get())
            check(config)
            result = task(config)
            status = int(result) if isinstance(result, IntEnum) else DONE
        except Exception as error:
            status = report_error(error)
            if processes() > 1:  # the other processes may be waiting for this one; torchrun ends them
                sys.exit(status)
        statuses.append(status)
        return result

    return job


def report_error(error: BaseException, resumes: bool = False) -> int:
    """Print an error in one line on stderr (a `ConfigError`: one line per problem) and return the exit status.

    `resumes` says whether the command, repeated after a stop, resumes from what it saved.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if full:
        traceback.print_exception(error)
    if isinstance(error, OSError):
        error = in_the_way(error) or error
    if isinstance(error, UserError):
        if is_first():
            print(error, file=sys.stderr)
        return WRONG_INPUT
    if isinstance(error, KeyboardInterrupt | Stopped):
        reason = f"stopped by {error.signal.name}" if isinstance(error, Stopped) else "interrupted"
        if is_first():
            with contextlib.suppress(OSError):  # the terminal is gone
                print(f"{reason}; run the same command again to resume" if resumes else reason, file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    if isinstance(error, OSError) and error.errno in NO_RIGHTS and error.filename:
        fix = "set paths.outputs, paths.multirun or paths.cache to another folder"
        print(f"{error.filename}: no access ({error.strerror}); {fix}", file=sys.stderr)
        return WRONG_INPUT
    log.debug("failed", exc_info=error)
    hint = "" if full else " (HYDRA_FULL_ERROR=1 shows the traceback)"
    print(f"{type(error).__name__}: {one_line(error)}{hint}", file=sys.stderr)
    return FAILED


def name_of(task: Task) -> str:
    """Return the name of the verb: the name of the file that defines its task, even if that runs as `__main__`."""
    return Path(sys.modules[task.__module__].__file__ or "").stem
