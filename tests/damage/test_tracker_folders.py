"""A tracker's folder that is read-only or full costs one warning, which names that folder, and never the run."""

import importlib.util

import pytest

from tests.damage.damage import TASKS
from tests.whole import record_of

pytestmark = pytest.mark.whole

RUN = ("+experiment=smoke", *TASKS, "trainer.max_steps=2", "eval.base=false", "eval.limit=1")
MOMENTS = {
    "wandb": {
        "start": "tometune.tracking.wandb_tracker:check_space",
        "log": "wandb.sdk.wandb_run:Run.log",
        "finish": "wandb.sdk.wandb_run:Run.finish",
    },
    "trackio": {
        "start": "tometune.tracking.trackio_tracker:check_space",
        "log": "trackio.sqlite_storage:SQLiteStorage.bulk_log",  # called in a thread
        "finish": "trackio:finish",
    },
}
CASES = [
    pytest.param(tracker, moment, error, marks=[] if number % 4 == 1 else [pytest.mark.nightly])
    for number, (tracker, moment, error) in enumerate(
        (tracker, moment, error) for tracker in MOMENTS for moment in MOMENTS[tracker] for error in ("EROFS", "ENOSPC")
    )
]


@pytest.mark.parametrize(("tracker", "moment", "error"), CASES)
def test_the_run_is_completed_with_one_warning(place, tracker, moment, error):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is an extra")
    outputs = place.folder / f"{tracker}_{moment}_{error}"
    choice = (f"tracking={tracker}", *(["tracking.mode=offline"] if tracker == "wandb" else []))
    status, stderr = place.train(
        *(*RUN, *choice, f"paths.outputs={outputs}"),
        moment=(MOMENTS[tracker][moment], 1, error),
        env={"TRACKIO_DIR": str(outputs / "trackio")},  # the moment imports the tracker
    )
    assert status == 0, stderr
    (run,) = outputs.glob("tiny-*")
    assert record_of(run)["status"] == "completed"
    (warning,) = [line for line in stderr.splitlines() if "the run continues" in line]
    assert f" in {run if tracker == 'wandb' else outputs}/{tracker} (" in warning
    assert "Traceback" not in stderr
    assert "UserWarning" not in stderr
