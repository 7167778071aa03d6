"""Reports of synthetic sweeps, shared by the tests, and a sweep of nine runs that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.sweeps import write_run, write_table
from tometune.config.root import Config
from tometune.reporting import report_files
from tometune.reporting.analysis import Report, build
from tometune.runs import stored

PARSED: dict[str, Config] = {}


@pytest.fixture(autouse=True)
def each_config_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse each config.yaml once by content: parsing takes most of the time in which a sweep is read."""
    parse = stored.stored_config

    def stored_config(folder: Path) -> Config:
        path = folder / "config.yaml"
        text = path.read_text() if path.exists() else ""
        if text not in PARSED:
            PARSED[text] = parse(folder)
        return PARSED[text]

    monkeypatch.setattr(stored, "stored_config", stored_config)


@pytest.fixture(scope="session")
def multirun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multirun")


@pytest.fixture(scope="session")
def table_report(multirun: Path) -> Report:
    """The report of a 3 × 3 table in which more data helps, written to its folder."""
    write_table(multirun / "table", effect=0.08, deviation=0.002)
    made = build(multirun / "table", 1_000, 0.95)
    report_files.write(made)
    return made


@pytest.fixture(scope="session")
def table(table_report: Report) -> dict:
    return table_report.table


@pytest.fixture(scope="session")
def one_seed(multirun: Path) -> Report:
    """The report of two models with three mixes and one seed."""
    for model in ("tiny", "small"):
        write_table(multirun / "models", seeds=1, model=model)
    return build(multirun / "models", 200, 0.95)


@pytest.fixture(scope="session")
def one_cell(multirun: Path) -> Report:
    """The report of a single run, written to its folder."""
    write_run(multirun / "one")
    made = build(multirun / "one", 200, 0.95)
    report_files.write(made)
    return made


@pytest.fixture(scope="session")
def ranks(multirun: Path) -> Report:
    """The report of one mix with three ranks and two seeds."""
    for rank in (8, 16, 4):
        for seed in (0, 1):
            write_run(multirun / "ranks", seed=seed, settings={"lora.r": rank})
    return build(multirun / "ranks", 200, 0.95)


@pytest.fixture
def sweep(table_report: Report, tmp_path: Path) -> Path:
    """A copy of the runs of `table_report`, to be changed."""
    folder = tmp_path / "multirun" / "table"
    shutil.copytree(table_report.sweep.folder, folder, ignore=shutil.ignore_patterns("table.*", "report.html"))
    return folder


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that returns the page of a report with these figures only, which take most of its time."""
    draw = report_files.draw

    def made(report: Report, *names: str) -> str:
        chosen = lambda figure, *arguments: draw(figure, *arguments) if figure.__name__ in names else None  # noqa: E731
        monkeypatch.setattr(report_files, "draw", chosen)
        return report_files.as_html(report)

    return made
