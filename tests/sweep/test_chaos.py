"""The nine-run table killed again and again, at moments drawn by a seed, ends as the undisturbed one.

`TOMETUNE_KILLS` says how often it is killed, 20 for the whole test; a few by default.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, scores_of

pytestmark = [pytest.mark.whole, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("TOMETUNE_KILLS", "5"))
TABLE = (
    *("+sweep=table_pydocs", "model=tiny", "trainer=debug", "tracking=none"),
    *("eval.limit=2", "~eval.tasks.summarisation", "~eval.tasks.question_answering"),
    *("trainer.learning_rate=1e-2", "trainer.save_steps=1"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    made = Workplace(tmp_path_factory.mktemp("chaos"))
    yield made
    made.close()


def runs_in(place: Workplace, name: str) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(place.folder.glob(f"multirun/{name}/*/run.json"))}


def test_a_table_killed_again_and_again_ends_as_the_undisturbed_one(place: Workplace) -> None:
    status, stderr = place.train(*TABLE, "sweep.name=calm", "seed=0", "data=pydocs_3k")  # fills the cache
    assert status == 0, stderr
    start = time.monotonic()
    status, stderr = place.train(*TABLE, "sweep.name=undisturbed")
    whole = time.monotonic() - start
    assert status == 0, stderr

    start = time.monotonic()
    status, stderr = place.train(*TABLE, "sweep.name=undisturbed")
    idle = time.monotonic() - start  # composing nine configs, and nothing to do
    assert status == 0, stderr

    draw = random.Random(20)
    deaths = 0
    for _ in range(KILLS):
        seconds = idle + draw.uniform(-0.5, 2.0 + 3 * (whole - idle) / KILLS)
        status, stderr = place.train(*TABLE, "sweep.name=killed", seconds=seconds)
        assert status in (-9, 0), stderr
        assert "Traceback" not in stderr
        deaths += status == -9
    status, stderr = place.train(*TABLE, "sweep.name=killed")
    assert status == 0, stderr
    calm, killed = runs_in(place, "undisturbed"), runs_in(place, "killed")
    assert list(killed) == list(calm)
    assert len(calm) == 9
    attempts = sum(record_of(run)["attempts"] for run in killed.values())
    print(f"{deaths} kills of {KILLS} hit, {attempts} attempts at 9 runs, undisturbed {whole:.0f} s")
    assert deaths, "the moments are drawn from the undisturbed time: on a loaded machine some come too late"
    assert attempts >= 9
    for name, run in killed.items():
        same_as_undisturbed(run, calm[name])
    assert list_of(place, "killed") == list_of(place, "undisturbed")


def same_as_undisturbed(run: Path, calm: Path) -> None:
    """Check that nothing but the times tells the two runs apart."""
    record, other = record_of(run), record_of(calm)
    assert record["status"] == "completed"
    assert (record["config_hash"], record["data"]) == (other["config_hash"], other["data"])
    assert scores_of(run) == scores_of(calm)
    assert answers_of(run) == answers_of(calm)
    assert adapter_of(run) == adapter_of(calm)
    assert curve_of(run) == curve_of(calm)
    assert (run / "mix.json").read_bytes() == (calm / "mix.json").read_bytes()
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "nothing half-written is left"


def list_of(place: Workplace, name: str) -> str:
    """Read sweep.json but for the sweep's name."""
    return (place.folder / "multirun" / name / "sweep.json").read_text().replace(f"sweep.name={name}", "")
