import pytest

from tests.reporting.sweeps import edit
from tometune.config.tracking import TrackingConfig
from tometune.reporting.conclusions import NOTHING_TO_COMPARE
from tometune.reporting.publish import log_report, runs_elsewhere
from tometune.reporting.sweep import read_sweep
from tometune.tracking.tracker import RunLabels, RunTracker


class Kept(RunTracker):
    """Keeps everything that is logged."""

    def __init__(self, folder):
        super().__init__(TrackingConfig(), RunLabels("report-table", "report", "table", folder, {}))
        self.values, self.tables, self.pages = {}, {}, {}

    def summary(self, values):
        self.values |= values

    def table(self, name, columns, rows):
        self.tables[name] = columns, rows

    def page(self, name, html):
        self.pages[name] = html


@pytest.fixture
def kept(table_report):
    tracker = Kept(table_report.sweep.folder)
    log_report(tracker, table_report)
    return tracker


def test_the_table_has_numbers_and_nothing_for_what_is_unknown(kept, table_report):
    columns, rows = kept.tables["table"]
    assert columns[:9] == ["model", "data", "seeds", "ROUGE-1", "ROUGE-2", "ROUGE-L", "sd 1", "sd 2", "sd L"]
    assert columns[9:11] == ["ROUGE-1 from", "ROUGE-1 to"]
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][:3] == ["tiny", "base model", "–"]
    assert rows[0][6:9] == [None, None, None]
    last = table_report.table["rows"][-1]
    assert rows[-1][3] == last["rouge1"]["mean"]
    assert rows[-1][-2:] == [last["rougeL"]["ci_low"], last["rougeL"]["ci_high"]]


def test_comparisons_are_in_a_table_and_in_the_summary(kept, table_report):
    assert len(kept.tables["comparisons"][1]) == len(table_report.table["comparisons"]) == 9
    entry = table_report.table["comparisons"][0]
    assert kept.values["difference/pydocs_2k-pydocs_1k/rouge1/delta"] == entry["delta"]
    assert kept.values["difference/pydocs_2k-pydocs_1k/rouge1/p_holm"] == entry["p_holm"]
    assert kept.values["cell/pydocs_3k/rougeL/mean"] == table_report.table["rows"][-1]["rougeL"]["mean"]
    assert "cell/before_tiny/rouge1/std" not in kept.values
    assert kept.values["answers"].startswith("Is pydocs_3k better than pydocs_1k? Yes.")


def test_every_picture_is_a_page_and_so_is_the_report(kept, table_report):
    names = ("means", "tasks", "published", "loss", "sources", "throughput")
    assert list(kept.pages) == [*(f"picture/{name}" for name in names), "report"]
    assert kept.pages["report"] == (table_report.sweep.folder / "report.html").read_text()
    assert kept.pages["picture/means"].count("<svg") == 1
    assert "prefers-color-scheme: dark" in kept.pages["picture/means"]
    assert "http:" not in "".join(kept.pages.values())


def test_one_cell_has_no_comparisons(one_cell):
    tracker = Kept(one_cell.sweep.folder)
    log_report(tracker, one_cell)
    assert list(tracker.tables) == ["table"]
    assert tracker.values["answers"] == NOTHING_TO_COMPARE


def test_notes_on_runs_that_the_panels_lack(sweep):
    runs = sorted(path.parent for path in sweep.glob("*/run.json"))
    for run in runs[:-1]:
        edit(run, tracking={"tracker": "wandb", "path": "me/tometune/x"})
    edit(runs[0], tracking={"tracker": "wandb", "path": "other/x"})
    assert runs_elsewhere(read_sweep(sweep), "tometune") == [
        "1 of 9 runs were not logged to W&B, so its panels lack them",
        "runs were logged to project other, not tometune: set tracking.project",
    ]
    edit(runs[0], tracking={"tracker": "wandb", "path": "tometune/x"})
    edit(runs[-1], tracking={"tracker": "wandb", "path": "me/tometune/x"})
    assert runs_elsewhere(read_sweep(sweep), "tometune") == []
