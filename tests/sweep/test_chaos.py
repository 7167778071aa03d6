"""A sweep that is killed repeatedly, at moments drawn by a seed, ends like an undisturbed one.

The moments are points of its progress, visible in its folder, so that on any machine each kill hits a run at work.
By default two runs are killed twice; the nightly test kills the nine-run table 20 times.
"""

import random
from pathlib import Path

import pytest

from tests.fork_server import progress
from tests.sweep.conftest import runs_in
from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, timeless

pytestmark = [pytest.mark.whole, pytest.mark.timeout(1800)]

DELAY = 0.3  # maximum seconds between a visible event and the kill
FILES = ("table.json", "table.csv", "table.md")  # they contain no times and no paths

TABLE = (
    *("+sweep=table_pydocs", "model=tiny", "trainer=debug", "tracking=none"),
    *("eval.limit=2", "~eval.tasks.summarisation", "~eval.tasks.question_answering"),
    *("trainer.learning_rate=1e-2", "trainer.save_steps=1"),
)


@pytest.mark.parametrize(
    ("runs", "kills", "more"),
    [
        pytest.param(2, 2, ("data=pydocs_1k", "seed=0,1"), id="2 runs, 2 kills"),
        pytest.param(9, 20, (), id="9 runs, 20 kills", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_sweep_ends_as_the_undisturbed_one(tmp_path, runs, kills, more):
    place = Workplace(tmp_path)
    # Both sweeps have the same name, which their tables contain, in separate folders.
    calm, killed = (tmp_path / name / "table_pydocs" for name in ("calm", "killed"))
    status, stderr = place.train(*TABLE, *more, "paths.multirun=calm")
    assert status == 0, stderr
    command = (*TABLE, *more, "paths.multirun=killed")
    interrupted = kill_repeatedly(place, command, kills, killed, whole=progress(calm))
    status, stderr = place.train(*command)
    assert status == 0, stderr

    attempts = sum(record_of(run)["attempts"] for run in runs_in(killed).values())
    print(f"{kills} kills of {kills} hit, {attempts} attempts at {runs} runs")
    assert len(runs_in(calm)) == runs
    assert list(runs_in(killed)) == list(runs_in(calm))
    assert interrupted, "some kill came in the middle of a run"
    assert attempts == runs + len(interrupted), "each interrupted attempt was followed by one, and no other was"
    for name in FILES:
        assert (killed / name).read_bytes() == (calm / name).read_bytes(), name
    for name, run in runs_in(killed).items():
        same_as_undisturbed(run, runs_in(calm)[name])
    listed = (killed / "sweep.json").read_text().replace("paths.multirun=killed", "paths.multirun=calm")
    assert listed == (calm / "sweep.json").read_text()


def kill_repeatedly(
    place: Workplace, command: tuple[str, ...], kills: int, killed: Path, whole: set[str]
) -> set[tuple[str, int]]:
    """Kill a sweep at points spread over its progress (`whole`); returns run and number of interrupted attempts."""
    draw = random.Random(20)
    interrupted = set()
    for left in range(kills, 0, -1):
        share = 2 * len(whole - progress(killed)) // (left + 2)  # leaves enough for the last kill to hit, too
        moment = (str(killed), draw.randint(0, share), draw.uniform(0, DELAY))
        status, stderr = place.train(*command, kill=moment)
        assert status == -9, f"{moment}: too late: {stderr}"
        assert "Traceback" not in stderr
        records = [record_of(run) for run in runs_in(killed).values()]
        interrupted |= {(entry["run_id"], entry["attempts"]) for entry in records if entry["status"] == "running"}
    return interrupted


def same_as_undisturbed(run: Path, calm: Path) -> None:
    assert record_of(run)["status"] == "completed"
    assert timeless(record_of(run)) == timeless(record_of(calm))
    for read in (answers_of, adapter_of, curve_of):
        assert read(run) == read(calm)
    assert (run / "mix.json").read_bytes() == (calm / "mix.json").read_bytes()
    # A kill between the last record and the end of the lock leaves the lock's file, since later commands skip the run.
    hidden = {path.name for path in run.iterdir() if path.name.startswith(".")}
    assert hidden <= {".lock"}, "nothing half-written is left"
