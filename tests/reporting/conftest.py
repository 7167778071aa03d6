"""A sweep of nine runs, as training would leave it, and the report of it."""

from pathlib import Path

import pytest

from tests.reporting.sweeps import write_table
from tometune.reporting.report import Report, build, write

RESAMPLES = 1_000


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return the folder of a 3 × 3 table in which more data helps."""
    folder = tmp_path / "multirun" / "table"
    write_table(folder, effect=0.08, deviation=0.002)
    return folder


@pytest.fixture
def report():
    """Return a function that builds the report of a folder."""

    def make(folder: Path) -> Report:
        return build(folder, RESAMPLES, 0.95)

    return make


@pytest.fixture
def written_report(sweep: Path) -> Report:
    """Return the report of the 3 × 3 table, written to its folder."""
    made = build(sweep, RESAMPLES, 0.95)
    write(made)
    return made
