"""A finished sweep of two short runs."""

from pathlib import Path

import pytest

from tests.whole import Workplace, adapter_of, record_of, scores_of

ONE_TASK = ("~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text")
QUICK = ("+experiment=smoke", *ONE_TASK, "eval.base=false", "eval.limit=1", "trainer.max_steps=2")
"""A run of two steps, scored on one example."""

SWEEP = ("-m", *QUICK, "seed=0,1")


def runs_in(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/run.json"))}


def check_runs(finished: Path, name: str, stderr: str) -> None:
    found, expected = runs_in(finished.with_name(name)), runs_in(finished)
    assert list(found) == list(expected), stderr
    for run_id, run in found.items():
        assert record_of(run)["status"] == "completed"
        assert adapter_of(run) == adapter_of(expected[run_id])
        assert scores_of(run) == scores_of(expected[run_id])


@pytest.fixture(scope="module")
def finished(place: Workplace) -> Path:
    """The folder of the sweep, whose runs were made one after the other in one process."""
    status, stderr = place.train(*SWEEP, "sweep.name=finished")
    assert status == 0, stderr
    assert stderr.count("is loaded already") == 1, stderr
    return place.folder / "multirun" / "finished"
