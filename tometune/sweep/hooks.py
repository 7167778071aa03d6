"""What happens before and after the runs of a sweep, in the user's process, and around each run, in any process.

Cells with an invalid config are found earlier, in `config/sweep_cells.py`; here they are listed and counted.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from tometune.common.distributed import first_alone, is_first
from tometune.common.errors import UserError, one_line
from tometune.config.root import ADHOC, Config
from tometune.config.sweep_cells import Jobs
from tometune.reporting.question import check_question
from tometune.reporting.sweep import planned
from tometune.runs.lock import run_lock
from tometune.runs.run import DamageError, Run, check_writable, runs_folder
from tometune.runs.sweep_file import Cell, read_cells
from tometune.sweep import arms  # noqa: F401 -- its resolver names the arms of a sweep over sources
from tometune.sweep.cells import State, Status, cell_of, cells_of, list_cells, status_of


def begin_sweep(jobs: Jobs) -> bool:
    """List the cells of a command in sweep.json, and return whether a run is left to make.

    Under torchrun every process calls this; only the first one writes.

    Raises:
        UserError: a search would be guided by the test tasks, sweep.json has another schema, or `report.primary` names
            no cells of the sweep.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked, with any launcher
    if jobs.search:
        if not jobs.config.eval.validation:
            raise UserError(
                f"eval={jobs.config.eval.name}: a search would choose settings by the test tasks and overstate their "
                "scores; choose eval=pydocs_validation or hub_validation, or your own with eval.validation=true"
            )
        return True
    check_primary(jobs)
    left = 0
    for folder, cells in cells_of(jobs.known).items():
        if is_first():
            list_cells(folder, cells, all_of_command=True, question=jobs.config.report)
        statuses = [status_of(folder, cell) for cell in cells]
        counts = Counter(status.state for status in statuses)
        left += len(cells) - counts[State.completed]
        states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        wrong = [str(status) for status in statuses if status.cell.run_id is None]
        _print_lines(f"sweep {folder}: {len(cells)} runs, {states}", wrong)
    return left > 0


def check_primary(jobs: Jobs) -> None:
    """Check that the cells in `report.primary` will exist; only a warning if other commands listed cells, too.

    Raises:
        UserError: an entry names no comparison of this command's cells.
    """
    for folder in dict.fromkeys(runs_folder(job.config) for job in jobs.known):
        own = [job for job in jobs.known if runs_folder(job.config) == folder]
        if problem := check_question(planned(folder, [job.config for job in own]), jobs.config.report):
            with suppress(DamageError):  # a broken list is written again
                if any(cell.overrides not in [job.overrides for job in own] for cell in read_cells(folder)):
                    _print_lines(f"{problem}; only other commands of this sweep may have them")
                    continue
            raise UserError(problem)


def end_sweep(jobs: Jobs, reported: Mapping[Path, Mapping[str, str] | None]) -> int:
    """Print the missing runs with their reasons on stderr, and return the exit status: 0 if there are none.

    It is 2 if wrong input or config prevented every run, else 1. `reported` holds, by sweep folder, the missing cells
    of the report that was written; using them keeps this list equal to the report's although other processes may work
    on the sweep. In a named sweep, the cells that other commands listed count too.
    """
    if not is_first():
        return 0
    statuses, missing, others = list[Status](), list[str](), list[str]()
    for folder, cells in listed_cells(jobs).items():
        own = {cell.name: status_of(folder, cell) for cell in cells}
        statuses += own.values()
        unfinished = {name: str(status) for name, status in own.items() if status.state is not State.completed}
        report = reported.get(folder)
        for name, reason in (unfinished if report is None else report).items():
            # A run can have been completed since the report was written.
            line = unfinished.get(name, f"  {name}: {reason}")
            if name in own:
                missing.append(line)
            elif folder.name != ADHOC:
                others.append(line)
    if missing:
        _print_lines(f"{len(missing)} of {len(statuses)} runs are missing:", missing)
    if others:
        _print_lines("missing runs of other commands in this sweep (another sweep.name leaves them out):", others)
    if not missing and not others:
        return 0
    return 2 if all(status.wrong_input for status in statuses) else 1


def _print_lines(head: str, lines: Iterable[str] = ()) -> None:
    if is_first():
        print(head, *lines, sep="\n", file=sys.stderr)


def folders_with_results(jobs: Jobs) -> list[Path]:
    """Return the sweep folders of a command that hold a completed run."""
    folders = dict.fromkeys(runs_folder(config) for config in (jobs.config, *(job.config for job in jobs.known)))
    return [path for path in folders if State.completed in (status_of(path, cell).state for cell in read_cells(path))]


def listed_cells(jobs: Jobs) -> dict[Path, list[Cell]]:
    """Return the cells of a command as sweep.json lists them now; for a search, all cells of its sweep.

    A cell is found by its overrides if a cluster's node, where `auto` stands for something else than on this machine,
    listed it with another run id.
    """
    if jobs.search:
        folder = runs_folder(jobs.config)
        return {folder: read_cells(folder)}
    found = {}
    for folder, cells in cells_of(jobs.known).items():
        listed = read_cells(folder)
        names = {tuple(cell.overrides): cell for cell in listed} | {cell.run_id: cell for cell in listed if cell.run_id}
        found[folder] = [
            names.get(cell.run_id) or names.get(tuple(cell.overrides), cell) if cell.run_id else cell for cell in cells
        ]
    return found


@contextmanager
def attempt(run: Run, config: Config) -> Iterator[None]:
    """Run the body with the run's lock held and the run listed in its sweep; record an error in sweep.json.

    The record is read again under the lock, because another process may just have finished the run.

    Raises:
        BusyError: another process works on the run.
        UserError: the run's folder cannot be made or written.
    """
    with ExitStack() as stack:
        with first_alone():
            if is_first():
                check_writable(run.folder, "set paths.outputs to a writable folder")
                stack.enter_context(run_lock(run.folder))
            run.reload()
        if config.sweep.name is None or not is_first():
            yield
            return
        cell = cell_of(config, list(HydraConfig.get().overrides.task))
        list_cells(run.folder.parent, [cell], question=config.report)  # a search has not listed its cells
        try:
            yield
        except Exception as error:
            wrong_input = isinstance(error, UserError)
            text = one_line(error) if wrong_input else f"{type(error).__name__}: {one_line(error)}"
            list_cells(run.folder.parent, [replace(cell, error=text, exit_status=2 if wrong_input else 1)])
            raise


def skip_reason(run: Run, config: Config) -> str | None:
    """Return why a failed run of a sweep is skipped (with `sweep.retry_failed=false`), or None if it is to be run."""
    if config.sweep.name is None or config.sweep.retry_failed:
        return None
    cell = next((cell for cell in read_cells(run.folder.parent) if cell.run_id == run.id), None)
    status = status_of(run.folder.parent, cell) if cell else None
    return status.reason if status and status.state is State.failed else None
