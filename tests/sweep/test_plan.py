"""The plan of a command: what it counts, what it foretells from earlier runs, and how far off it was."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.whole import Workplace, record_of
from tometune.sweep.calibration import KEPT, Speed, measured, recall, remember
from tometune.sweep.planned import compare, duration

SPEED = Speed(train=0.01, evaluation={"base/a": 1.0}, overhead=2.0, start=None, memory=1e9, disk=1e6)


def test_the_median_of_the_last_runs_is_foretold(tmp_path: Path) -> None:
    assert recall(tmp_path, "x") is None
    for train in (9.0, *(0.01 * number for number in range(1, KEPT + 1))):
        remember(tmp_path, "x", replace(SPEED, train=train))
    remember(tmp_path, "x", replace(SPEED, train=0.03, overhead=None, start=8.0, memory=2e9))
    found = recall(tmp_path, "x")
    assert found == replace(SPEED, train=0.03, start=8.0, memory=2e9)
    assert recall(tmp_path, "y") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99, "runs": {}}'])
def test_a_broken_calibration_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "calibration.json").write_text(text)
    assert recall(tmp_path, "x") is None
    remember(tmp_path, "x", SPEED)
    assert recall(tmp_path, "x") == SPEED


def test_what_a_run_took(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    for step, size in ((2, 30), (4, 40)):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"checkpoint-{step}" / "weights").write_bytes(b"0" * size)
    task = {"seconds": 4.0, "examples": 2}
    record = {
        "attempts": 1,
        "train": {"tokens": 100, "seconds": 10.0, "peak_memory_bytes": 7},
        "eval": {"base": {"tasks": {"a": task}}, "tuned": {"tasks": {"a": task}}},
    }
    found = measured(record, 20.0, False, tmp_path)
    assert found == Speed(0.1, {"base/a": 2.0, "tuned/a": 2.0}, 2.0, None, 7, 5, 40)
    assert measured(record | {"attempts": 2}, 20.0, False, tmp_path) is None


def test_times_in_words() -> None:
    assert [duration(t) for t in (42.4, 600, 20_000, None)] == ["42 s", "10 min", "5.6 h", "unknown"]


def test_how_far_off_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, seconds: float | None) -> dict[str, object]:
        (tmp_path / name).mkdir()
        record = {"schema": 1, "run_id": name, "status": "completed", "started": "2026-01-01T00:00:10+00:00"}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        return {"run_id": name, "seconds": seconds}

    began = 1767225605.5
    compare(tmp_path, began, 50.0)
    (tmp_path / "plan.json").write_text(json.dumps({"runs": [run("a", 20.0), run("b", 20.0)]}))
    compare(tmp_path, began, 50.0)
    assert capsys.readouterr().err == "planned 40 s for 2 runs, took 50 s: 25% more\n"
    compare(tmp_path, began + 60, 50.0)
    run("c", None)
    compare(tmp_path, began, 50.0)
    assert capsys.readouterr().err == "", "nothing was made since, or not all of it was planned"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("plan"))
    return made


@pytest.mark.whole
def test_a_plan_before_and_after(place: Workplace) -> None:
    tasks = ("~eval.tasks.summarisation", "~eval.tasks.question_answering")
    quick = ("+experiment=smoke", *tasks, "trainer.max_steps=8")
    sweep = ("-m", *quick, "seed=0,1,2", "sweep.name=planned")
    done = place.verb("train", *sweep, "plan=true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no run of this kind was made here: measuring 12 steps and 16 answers") == 1
    assert re.search(r"tiny-pydocs_64-s0-\w{8} +64 +[\d,]+ +8 +8 +\d+ s", done.stdout)
    assert "3 runs, 0 done; 3 to make:" in done.stdout
    folder = place.folder / "multirun" / "planned"
    assert [path.name for path in folder.iterdir()] == ["plan.json"]

    assert place.train("-m", *quick, "seed=7,8", "sweep.name=others")[0] == 0
    done = place.verb("train", *sweep, "plan=true")
    assert re.search(r"  \d+ s one after the other, memory \d\.\d GB, disk 0\.\d\d GB", done.stdout)
    status, stderr = place.train(*sweep)
    assert status == 0, stderr
    assert re.fullmatch(r"planned \d+ s for 3 runs, took \d+ s: \d+% (more|less)", stderr.splitlines()[-1])
    planned = {run["run_id"]: run for run in json.loads((folder / "plan.json").read_text())["runs"]}
    for path in folder.glob("*/run.json"):
        record = record_of(path.parent)
        assert planned[record["run_id"]]["steps"] == record["train"]["steps"]
        assert planned[record["run_id"]]["rows"] == record["data"]["rows"]
        assert planned[record["run_id"]]["tokens"] == pytest.approx(record["train"]["tokens"], rel=0.2)
    done = place.verb("train", *sweep, "plan=true")
    assert "3 runs, 3 done; 0 to make:" in done.stdout
    assert len(re.findall(r" done *$", done.stdout, re.MULTILINE)) == 3


@pytest.mark.whole
def test_the_plan_of_a_single_run(place: Workplace) -> None:
    done = place.verb("train", "+experiment=smoke", "plan=true")
    assert done.returncode == 0, done.stderr
    assert "1 runs, 0 done; 1 to make:" in done.stdout
    assert not (place.folder / "outputs").exists()
