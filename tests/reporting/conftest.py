"""A sweep of nine runs as training would leave it, and its report."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.sweeps import write_run, write_table
from tometune.reporting.analysis import Report, build
from tometune.reporting.page import page, pictures, write

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
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of two models with three mixes and one seed."""
    folder = tmp_path_factory.mktemp("multirun") / "models"
    for model in ("tiny", "small"):
        write_table(folder, seeds=1, model=model)
    return build(folder, 200, 0.95)


@pytest.fixture(scope="session")
def one_cell(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a single run, written to its folder."""
    folder = tmp_path_factory.mktemp("multirun") / "one"
    write_run(folder)
    made = build(folder, 200, 0.95)
    write(made)
    return made


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of one mix with three ranks and two seeds."""
    folder = tmp_path_factory.mktemp("multirun") / "ranks"
    for rank in (8, 16, 4):
        for seed in (0, 1):
            write_run(folder, seed=seed, settings={"lora.r": rank})
    return build(folder, 200, 0.95)


@pytest.fixture(scope="session")
def table(table_report: Report) -> dict:
    """The content of its table.json."""
    return table_report.table


@pytest.fixture(scope="session")
def html(table_report: Report) -> str:
    """Its page."""
    pictures.cache_clear()  # the same bytes must come from drawing again
    return page(table_report)


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
