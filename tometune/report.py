"""Report on a sweep: scores per cell, differences and their confidence intervals, in the terminal and as a page.

tometune report sweep.name=table  # as text and as report.html
tometune report sweep.name=table report.primary=rougeL
tometune report sweep.name=table publish=wandb
tometune report sweep.name=table require='a>b:rougeL>=-0.01'  # for CI
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from enum import IntEnum
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tometune.common.errors import UserError
from tometune.common.files import disk_errors
from tometune.config.app import verb
from tometune.config.report import entries
from tometune.config.root import Config
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.runs.run import read_record, runs_folder
from tometune.runs.stored import earlier_runs, run_folder
from tometune.sweep import arms  # noqa: F401 -- its resolvers name mixes and arms

if TYPE_CHECKING:
    from tometune.reporting.analysis import Report

LOCK = ".report.lock"


@partial(verb, whole_sweep=True)
def main(config: Config) -> IntEnum | None:
    """Read the runs of a sweep, compare their scores, and write table.json, .csv, .md and report.html.

    Returns:
        The verdict on `require`, which is the exit status; None without one.
    """
    from tometune.tracking.tracker import check_tracker

    folder, runs = what_to_report(config)
    if config.publish is not None:
        check_tracker(publisher(config))
    return write_all(folder, config, runs)[1]


def what_to_report(config: Config) -> tuple[Path, list[Path]]:
    """Return the folder of the report, and the finished runs that it compares; none for those of a sweep.

    Raises:
        UserError: there is no such run or sweep.
    """
    names = [*([] if config.run is None else [config.run]), *config.runs]
    runs = [run_folder(name, config.paths, "runs" if config.runs else "run") for name in names]
    return (comparison_folder(runs, config) if runs else sweep_folder(config)), runs


def write_all(folder: Path, config: Config, runs: Sequence[Path] = ()) -> tuple[dict[str, str], IntEnum | None]:
    """Build the report of a sweep folder, print it, write its files, and publish it if `publish` is set.

    It is about the finished `runs`, if any are given, instead of those in the folder. With `require`, the only line on
    stdout is the verdict.

    Returns:
        The missing cells by name, with the reasons; and the verdict, None without `require`.

    Raises:
        UserError: the runs cannot be read or compared, or `tracking.mode=online` is not possible.
    """
    from tometune.reporting.report_files import print_report

    report, page = write_files(folder, config, runs)
    verdict, out = None, sys.stdout
    if config.require is None:
        print_report(report.table)
    else:
        from tometune.reporting.question import decide

        verdict, line = decide(entries(config.require), report.table)
        print(line)
        out = sys.stderr
    print(f"{page} (also table.md, table.csv and table.json)", file=out)
    if config.publish is not None:
        from tometune.reporting.wandb_report import publish

        print(*publish(report, publisher(config)), sep="\n", file=out)
    return {entry["run_id"]: entry["reason"] for entry in report.table["missing"]}, verdict


def write_files(folder: Path, config: Config, runs: Sequence[Path] = ()) -> tuple[Report, Path]:
    """Build the report of a sweep folder, or of `runs`, and write its files; returns it and the path of its page."""
    from tometune.reporting.analysis import build
    from tometune.reporting.html import find_cards, link_runs
    from tometune.reporting.report_files import write

    with ExitStack() as stack:
        if folder.is_dir():  # of two processes on one sweep, the last one to read it is the last one to write
            with disk_errors(folder, "paths.multirun"):
                stack.enter_context(FileLock(folder / LOCK))
        report = build(folder, config.eval.resamples, config.eval.confidence, config.report, runs)
        cards = find_cards(Path(config.paths.outputs).expanduser(), (run.record for run in report.sweep.runs))
        with disk_errors(folder, "paths.multirun"):
            page = write(report, cards)
        for card in cards.values():
            with suppress(OSError):  # the links are a convenience, and the card may be another user's
                link_runs(card, earlier_runs(config.paths))
        return report, page


def report_finished(folder: Path, config: Config) -> dict[str, str] | None:
    """Report on a sweep whose runs have just ended, and return its missing cells with the reasons.

    A report that fails costs one line and never the sweep; it returns None.
    """
    try:
        return write_all(folder, config)[0]
    except UserError as error:
        print(f"no report: {error}", file=sys.stderr)
    except Exception as error:
        print(f"no report: {type(error).__name__}: {error}", file=sys.stderr)
    return None


def comparison_folder(runs: Sequence[Path], config: Config) -> Path:
    """Make the folder for the report on these runs, below `paths.outputs`, and return it."""
    names = sorted(folder.resolve().name for folder in runs)
    digest = sha256("\n".join(names).encode()).hexdigest()[:8]
    folder = Path(config.paths.outputs).expanduser() / "reports" / f"{len(names)}-runs-{digest}"
    with disk_errors(folder, "paths.outputs"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sweep_folder(config: Config) -> Path:
    """Return the folder of the sweep to report on: that of `sweep.name`, else the one with the newest finished run.

    Raises:
        UserError: `sweep.name` is not set, and there is no run; lists the existing sweeps.
    """
    if config.sweep.name is None:
        folder = Path(config.paths.multirun).expanduser()
        records = sorted(folder.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        finished = (path for path in records if _is_completed(path))
        if newest := next(finished, records[0] if records else None):
            print(
                f"the sweep with the newest finished run: {newest.parents[1]} (another: sweep.name=…)", file=sys.stderr
            )
            return newest.parents[1]
        names = sorted(path.name for path in folder.glob("*/"))
        if not names:
            raise UserError(f"no sweep in {folder}; make one, e.g. tometune train -m +sweep=table")
        raise UserError(f"sweep.name is required; sweeps in {folder}: {', '.join(names)}")
    return runs_folder(config)


def _is_completed(path: Path) -> bool:
    with suppress(OSError, ValueError, UserError):
        return bool(read_record(path.parent).get("status") == "completed")
    return False


def publisher(config: Config) -> TrackingConfig:
    """Return the `tracking` group with the service of `publish` instead of the runs' tracker."""
    return replace(config.tracking, tracker=Tracker(str(config.publish)))


if __name__ == "__main__":
    main()
