"""A sweep of nine runs as training would leave it, and its report."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.sweeps import write_table
from tometune.reporting.page import page
from tometune.reporting.report import Report, build, write

RESAMPLES = 1_000


@pytest.fixture(scope="session")
def table_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a 3 × 3 table in which more data helps, written to its folder; do not change it."""
    folder = tmp_path_factory.mktemp("multirun") / "table"
    write_table(folder, effect=0.08, deviation=0.002)
    made = build(folder, RESAMPLES, 0.95)
    write(made)
    return made


@pytest.fixture(scope="session")
def table(table_report: Report) -> dict:
    """The content of its table.json."""
    return table_report.table


@pytest.fixture(scope="session")
def html(table_report: Report) -> str:
    """Its page."""
    return page(table_report.sweep, table_report.grid, table_report.table)


@pytest.fixture
def sweep(table_report: Report, tmp_path: Path) -> Path:
    """A copy of the runs, to be changed."""
    folder = tmp_path / "multirun" / "table"
    shutil.copytree(table_report.sweep.folder, folder, ignore=shutil.ignore_patterns("table.*", "report.html"))
    return folder


@pytest.fixture
def report() -> Callable[[Path], Report]:
    """A function that builds the report of a folder."""
    return lambda folder: build(folder, RESAMPLES, 0.95)
