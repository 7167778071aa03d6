"""The nine-run table killed again and again, at moments drawn by a seed, ends as the undisturbed one.

The moments are moments of its progress as it can be seen in its folder, so each kill hits a run at work, however fast
or slow the machine is. `TOMETUNE_KILLS` says how often it is killed, 20 for the whole test; a few by default.
"""

import os
import random
from pathlib import Path

import pytest

from tests.fork_server import progress
from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, timeless

pytestmark = [pytest.mark.whole, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("TOMETUNE_KILLS", "5"))
DELAY = 0.3
"""Seconds that a kill comes after a thing was seen, at most."""

TABLE = (
    *("+sweep=table_pydocs", "model=tiny", "trainer=debug", "tracking=none"),
    *("eval.limit=2", "~eval.tasks.summarisation", "~eval.tasks.question_answering"),
    *("trainer.learning_rate=1e-2", "trainer.save_steps=1"),
)
FILES = ("table.json", "table.csv", "table.md")
"""They hold no times and no paths, so they are compared byte by byte, with nothing left out."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("chaos"))
    return made


def sweep(place: Workplace, name: str) -> Path:
    """Return the folder of a table; both have the same name, which the table says, in folders of their own."""
    return place.folder / name / "table_pydocs"


def runs_in(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/run.json"))}


def test_a_table_killed_again_and_again_ends_as_the_undisturbed_one(place: Workplace) -> None:
    status, stderr = place.train(*TABLE, "paths.multirun=calm")
    assert status == 0, stderr
    calm, killed = sweep(place, "calm"), sweep(place, "killed")
    broken_off = kill_and_start_again(place, killed, whole=progress(calm))
    status, stderr = place.train(*TABLE, "paths.multirun=killed")
    assert status == 0, stderr

    attempts = sum(record_of(run)["attempts"] for run in runs_in(killed).values())
    print(f"{KILLS} kills of {KILLS} hit, {attempts} attempts at 9 runs")
    assert len(runs_in(calm)) == 9
    assert list(runs_in(killed)) == list(runs_in(calm))
    assert broken_off, "some kill came in the middle of a run"
    assert attempts == 9 + len(broken_off), "each attempt that was broken off was followed by one, and no other was"
    for name in FILES:
        assert (killed / name).read_bytes() == (calm / name).read_bytes(), name
    for name, run in runs_in(killed).items():
        same_as_undisturbed(run, runs_in(calm)[name])
    assert list_of(killed) == list_of(calm)


def kill_and_start_again(place: Workplace, killed: Path, whole: set[str]) -> set[tuple[str, int]]:
    """Kill the table `KILLS` times, spread over its progress; returns run and number of each attempt broken off.

    Args:
        place: where.
        killed: its folder.
        whole: all that will be seen in the folder of a finished one.
    """
    draw = random.Random(20)
    broken_off = set()
    for left in range(KILLS, 0, -1):
        share = 2 * len(whole - progress(killed)) // (left + 2)  # so much is left that the last one hits, too
        moment = (str(killed), draw.randint(0, share), draw.uniform(0, DELAY))
        status, stderr = place.train(*TABLE, "paths.multirun=killed", kill=moment)
        assert status == -9, f"{moment}: too late: {stderr}"
        assert "Traceback" not in stderr
        records = [record_of(run) for run in runs_in(killed).values()]
        broken_off |= {(entry["run_id"], entry["attempts"]) for entry in records if entry["status"] == "running"}
    return broken_off


def same_as_undisturbed(run: Path, calm: Path) -> None:
    """Check that nothing but the times tells the two runs apart."""
    assert record_of(run)["status"] == "completed"
    assert timeless(record_of(run)) == timeless(record_of(calm))
    assert answers_of(run) == answers_of(calm)
    assert adapter_of(run) == adapter_of(calm)
    assert curve_of(run) == curve_of(calm)
    assert (run / "mix.json").read_bytes() == (calm / "mix.json").read_bytes()
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "nothing half-written is left"


def list_of(folder: Path) -> str:
    """Read sweep.json but for the folder that was asked for."""
    return (folder / "sweep.json").read_text().replace(f"paths.multirun={folder.parent.name}", "")
