"""Before and after the runs of a sweep, in the process that the user started; and around each run, wherever it is."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from tometune.common.distributed import first_alone, is_first
from tometune.common.errors import UserError
from tometune.config.jobs import Jobs
from tometune.config.root import Config
from tometune.runs.lock import run_lock
from tometune.runs.run import Run, runs_folder
from tometune.runs.sweep_file import Cell, read_cells
from tometune.sweep.cells import cell_of, cells_of, list_cells, note_error
from tometune.sweep.planned import compare
from tometune.sweep.states import State, missing, standing


def begin(jobs: Jobs, measure: Callable[[Config], None]) -> bool:
    """List the cells of a command in sweep.json and return whether any of them is left to run.

    Under torchrun every process comes here; the first one writes and tells.

    Args:
        jobs: of the command.
        measure: makes a short run of a config's kind, for a plan.

    Raises:
        UserError: a search would choose by the test tasks, or sweep.json is broken.
    """
    if jobs.config.plan:
        plan_sweep(jobs, measure)
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked, whoever launches
    if jobs.search:
        check_search(jobs.config)
        return True
    left = 0
    for folder, cells in cells_of(jobs.known).items():
        if is_first():
            list_cells(folder, cells)
        standings = [standing(folder, cell) for cell in cells]
        left += len(missing(standings))
        counts = Counter(entry.state for entry in standings)
        states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        if is_first():
            print(f"sweep {folder}: {len(cells)} runs, {states}", file=sys.stderr)
    return left > 0


def plan_sweep(jobs: Jobs, measure: Callable[[Config], None]) -> None:
    """Print the plan of a sweep and keep it in the sweep's folder.

    Args:
        jobs: of the command.
        measure: makes a short run of a config's kind; once for each kind that none was made of on this machine.

    Raises:
        UserError: it is a search, or no run of it can be made.
    """
    from tometune.sweep import plan, planned

    if jobs.search:
        raise UserError("plan=true: a search makes up its runs as it goes; plan one of them, without the sweep")
    for folder, cells in cells_of(jobs.known).items():
        runs: list[plan.PlannedRun] = []
        problems = []
        for job, cell in zip(jobs.known, cells, strict=False):
            try:
                if cell.error is not None:
                    raise UserError(cell.error)
                runs.append(plan.plan_measured(job.config, first=all(run.done for run in runs), measure=measure))
            except UserError as error:
                problems.append(f"{' '.join(cell.overrides)}: {error}")
        planned.show(runs, problems)
        planned.keep(folder, runs)


def check_search(config: Config) -> None:
    """Check that a search is not led by what the results are measured on.

    Raises:
        UserError: the tasks are not for validation.
    """
    if not config.eval.validation:
        raise UserError(
            f"eval={config.eval.name}: a search would pick its settings by the test tasks, whose scores would then "
            "say too much; choose eval=pydocs_validation or hub_validation, or your own with eval.validation=true"
        )


def end(jobs: Jobs) -> int:
    """Tell on stderr which runs are missing and why, and return the exit status: 0 only if none is.

    It is 2 where wrong input or config kept every run from starting, else 1.
    """
    standings = [entry for folder, cells in _of(jobs).items() for entry in (standing(folder, cell) for cell in cells)]
    gone = missing(standings)
    if jobs.config.plan or not is_first():
        return 0
    if jobs.launcher == "basic":  # others take less time by the clock than their runs take together
        for folder in _of(jobs):
            compare(folder, jobs.started, time.time() - jobs.started)
    if not gone:
        return 0
    print(f"{len(gone)} of {len(standings)} runs are missing:", file=sys.stderr)
    for entry in gone:
        print(entry.line(), file=sys.stderr)
    return 2 if all(entry.wrong_input for entry in standings) else 1


def folders(jobs: Jobs) -> list[Path]:
    """Return the folders of a command's sweeps (one, unless its name is what differs) in which a run was completed."""
    done = {
        folder: [cell for cell in read_cells(folder) if standing(folder, cell).state is State.completed]
        for folder in _of(jobs)
    }
    return [folder for folder, cells in done.items() if cells]


def _of(jobs: Jobs) -> dict[Path, list[Cell]]:
    """Return the cells of a command as they are listed now; of a search, all that its sweep has."""
    if jobs.search:
        folder = runs_folder(jobs.config)
        return {folder: read_cells(folder)}
    found = {}
    for folder, cells in cells_of(jobs.known).items():
        listed = {cell.run_id: cell for cell in read_cells(folder)}
        found[folder] = [listed.get(cell.run_id, cell) if cell.run_id else cell for cell in cells]
    return found


@contextmanager
def attempt(run: Run, config: Config) -> Iterator[None]:
    """Be at a run while the body runs: alone, listed in its sweep, and with the reason kept if it ends early.

    The record is read again once the run is ours: another process may just have finished it.

    Raises:
        BusyError: another process is at it.
        UserError: the run's folder cannot be made or written.
    """
    with ExitStack() as stack:
        with first_alone():
            if is_first():
                run.check_writable()
                stack.enter_context(run_lock(run.folder))
            run.reload()
        if config.sweep.name is None or not is_first():
            yield
            return
        cell = cell_of(config, list(HydraConfig.get().overrides.task))
        list_cells(run.folder.parent, [cell])
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            note_error(run.folder.parent, cell, " ".join(text.split()), 2 if isinstance(error, UserError) else 1)
            raise


def skip_reason(run: Run, config: Config) -> str | None:
    """Return why a run of a sweep is not tried again; None where it is."""
    if config.sweep.name is None or config.sweep.retry_failed:
        return None
    listed = {cell.run_id: cell for cell in read_cells(run.folder.parent)}
    cell = listed.get(run.id)
    found = standing(run.folder.parent, cell) if cell else None
    if found is None or found.state is not State.failed:
        return None
    return found.reason
