"""The report of a sweep of nine runs."""

from pathlib import Path

import pytest

from tests.reporting.sweeps import write_table
from tometune.reporting.report import Report, build, write


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """The report of a 3 × 3 table in which more data helps; written."""
    folder = tmp_path / "multirun" / "table"
    write_table(folder, effect=0.08, deviation=0.002)
    made = build(folder, 1_000, 0.95)
    write(made)
    return made
