"""A tracker's folder that is read-only or full costs one warning, which names that folder, and never the run."""

import importlib.util
import re
from itertools import product

import pytest

from tests.damage.damage import TASKS
from tests.whole import record_of

pytestmark = pytest.mark.whole

RUN = ("+experiment=smoke", *TASKS, "trainer.max_steps=2", "eval.base=false", "eval.limit=1")
MOMENTS = (
    "tometune.tracking.wandb_tracker:check_space",
    "wandb.sdk.wandb_run:Run.log",
    "wandb.sdk.wandb_run:Run.finish",
    "tometune.tracking.trackio_tracker:check_space",
    "trackio.sqlite_storage:SQLiteStorage.bulk_log",  # called in a thread
    "trackio:finish",
)
CASES = [
    pytest.param(moment, error, marks=[] if number % 4 == 1 else [pytest.mark.nightly])
    for number, (moment, error) in enumerate(product(MOMENTS, ("EROFS", "ENOSPC")))
]


@pytest.mark.parametrize(("moment", "error"), CASES)
def test_the_run_is_completed_with_one_warning(place, moment, error):
    tracker = "wandb" if "wandb" in moment else "trackio"
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is an extra")
    outputs = place.folder / re.sub(r"\W", "_", f"{moment}_{error}")
    choice = (f"tracking={tracker}", *(["tracking.mode=offline"] if tracker == "wandb" else []))
    status, stderr = place.train(
        *(*RUN, *choice, f"paths.outputs={outputs}"),
        moment=(moment, 1, error),
        env={"TRACKIO_DIR": str(outputs / "trackio")},  # the moment imports the tracker
    )
    assert status == 0, stderr
    (run,) = outputs.glob("tiny-*")
    assert record_of(run)["status"] == "completed"
    (warning,) = [line for line in stderr.splitlines() if "the run continues" in line]
    assert f" in {run if tracker == 'wandb' else outputs}/{tracker} (" in warning
    assert "Traceback" not in stderr
    assert "UserWarning" not in stderr
