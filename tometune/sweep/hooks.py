"""Code that runs before and after the runs of a sweep, in the user's process, and around each run, in any process."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from tometune.common.distributed import first_alone, is_first
from tometune.common.errors import UserError
from tometune.config.jobs import Jobs
from tometune.config.root import Config
from tometune.runs.lock import run_lock
from tometune.runs.run import Run, runs_folder
from tometune.runs.sweep_file import Cell, read_cells
from tometune.sweep.cells import State, cell_of, cells_of, list_cells, missing, status_of


def begin(jobs: Jobs, measure: Callable[[Config], None]) -> bool:
    """List the cells of a command in sweep.json, or print its plan, and return whether a run is left to be made.

    Under torchrun every process calls this; only the first one writes.

    Args:
        jobs: of the command.
        measure: makes a run, for `plan=measure`.

    Raises:
        UserError: a search would be guided by the test tasks, or sweep.json is broken.
    """
    if jobs.config.plan:
        print_plans(jobs, measure)
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked, with any launcher
    if jobs.search:
        if not jobs.config.eval.validation:
            raise UserError(
                f"eval={jobs.config.eval.name}: a search would choose settings by the test tasks and overstate their "
                "scores; choose eval=pydocs_validation or hub_validation, or your own with eval.validation=true"
            )
        return True
    left = 0
    for folder, cells in cells_of(jobs.known).items():
        if is_first():
            list_cells(folder, cells)
        statuses = [status_of(folder, cell) for cell in cells]
        left += len(missing(statuses))
        counts = Counter(status.state for status in statuses)
        states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        if is_first():
            print(f"sweep {folder}: {len(cells)} runs, {states}", file=sys.stderr)
    return left > 0


def print_plans(jobs: Jobs, measure: Callable[[Config], None]) -> None:
    """Print the plan of each sweep of a command.

    Raises:
        UserError: the command is a search, whose runs are not known in advance.
    """
    from tometune.sweep.plan import PlannedRun, plan_run, print_plan

    if jobs.search:
        raise UserError("plan=true: the runs of a search are not known in advance; plan one of them without the sweep")
    for cells in cells_of(jobs.known).values():
        runs: list[PlannedRun] = []
        problems = []
        for job, cell in zip(jobs.known, cells, strict=False):
            try:
                if cell.error is not None:
                    raise UserError(cell.error)
                runs.append(plan_run(job.config, measure))
            except UserError as error:
                problems.append(f"{' '.join(cell.overrides)}: {error}")
        print_plan(runs, problems)


def end(jobs: Jobs) -> int:
    """Print the missing runs with their reasons on stderr, and return the exit status: 0 if there are none.

    It is 2 if wrong input or config prevented every run, else 1.
    """
    if jobs.config.plan or not is_first():
        return 0
    statuses = [status_of(folder, cell) for folder, cells in listed_cells(jobs).items() for cell in cells]
    left = missing(statuses)
    if not left:
        return 0
    lines = [f"{len(left)} of {len(statuses)} runs are missing:", *(status.line() for status in left)]
    print(*lines, sep="\n", file=sys.stderr)
    return 2 if all(status.wrong_input for status in statuses) else 1


def folders(jobs: Jobs) -> list[Path]:
    """Return the sweep folders of a command that hold a completed run."""
    return [
        folder
        for folder in listed_cells(jobs)
        if any(status_of(folder, cell).state is State.completed for cell in read_cells(folder))
    ]


def listed_cells(jobs: Jobs) -> dict[Path, list[Cell]]:
    """Return the cells of a command as sweep.json lists them now; for a search, all cells of its sweep."""
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
    """Hold the lock of a run in the body, with the run listed in its sweep; an error is recorded in sweep.json.

    The record is read again under the lock, because another process may just have finished the run.

    Raises:
        BusyError: another process works on the run.
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
            wrong_input = isinstance(error, UserError)
            text = str(error) if wrong_input else f"{type(error).__name__}: {error}"
            failed = replace(cell, error=" ".join(text.split()), exit_status=2 if wrong_input else 1)
            list_cells(run.folder.parent, [failed])
            raise


def skip_reason(run: Run, config: Config) -> str | None:
    """Return why a run of a sweep is not tried again (it failed, and `sweep.retry_failed=false`), or None."""
    if config.sweep.name is None or config.sweep.retry_failed:
        return None
    cell = next((cell for cell in read_cells(run.folder.parent) if cell.run_id == run.id), None)
    status = status_of(run.folder.parent, cell) if cell else None
    return status.reason if status and status.state is State.failed else None
