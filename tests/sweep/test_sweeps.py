"""Whole sweeps on tiny weights: skipped, retried and failed cells, two processes, and the final message."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.whole import Workplace, adapter_of, record_of, timeless

pytestmark = pytest.mark.whole

ONE_TASK = ("~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text")
QUICK = ("+experiment=smoke", *ONE_TASK, "eval.base=false", "eval.limit=1", "trainer.max_steps=2")
"""A run of two steps, scored on one example."""


@pytest.fixture(scope="module")
def finished(place: Workplace) -> Path:
    """A sweep of two seeds, finished; its folder."""
    status, stderr = place.train("-m", *QUICK, "seed=0,1", "sweep.name=finished")
    assert status == 0, stderr
    return place.folder / "multirun" / "finished"


def runs_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: record_of(path.parent) for path in sorted(folder.glob("*/run.json"))}


def test_the_same_command_again_runs_nothing_and_imports_no_torch(place: Workplace, finished: Path) -> None:
    listed = [entry["run_id"] for entry in json.loads((finished / "sweep.json").read_text())["cells"]]
    assert sorted(listed) == sorted(runs_in(finished))
    assert [record["status"] for record in runs_in(finished).values()] == ["completed"] * 2
    assert not list(finished.glob("*/.lock"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    watch = place.folder / "watch.py"
    watch.write_text(
        "import runpy, sys\n"
        "runpy.run_module('tometune.train', run_name='__main__', alter_sys=True)\n"
        "print('heavy:', *sorted({'torch', 'transformers', 'trl', 'datasets', 'wandb'} & set(sys.modules)))\n"
    )
    done = place.python(str(watch), "-m", *QUICK, "seed=0,1", "sweep.name=finished")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["sweep multirun/finished: 2 runs, 2 completed"]
    assert done.stdout.splitlines()[-1] == "heavy:"
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    report = (".sweep.lock", "table.json", "table.csv", "table.md", "report.html")  # rewritten for the same runs
    assert {path for path in after if after[path] != before.get(path)} - {finished} <= {finished / n for n in report}


def test_a_larger_sweep_of_the_same_name_runs_what_is_new(place: Workplace, finished: Path) -> None:
    attempts = {name: record["attempts"] for name, record in runs_in(finished).items()}
    status, stderr = place.train("-m", *QUICK, "seed=0,1,2", "sweep.name=finished")
    assert status == 0, stderr
    assert "3 runs, 2 completed, 1 not started" in stderr
    assert stderr.count("nothing to do") == 2
    now = runs_in(finished)
    assert len(now) == 3
    assert {name: now[name]["attempts"] for name in attempts} == attempts


@pytest.mark.parametrize("name", ["run.json", "adapter/adapter_model.safetensors"])
def test_a_damaged_run_is_not_completed_and_made_again(place: Workplace, finished: Path, name: str) -> None:
    """The other runs stay as they are."""
    one, other = sorted(path.parent for path in finished.glob("*/run.json"))[:2]
    content, kept = (one / name).read_bytes(), (other / "run.json").read_bytes()
    before = record_of(one)
    (one / name).write_bytes(content[: len(content) // 2])
    status, stderr = place.train("-m", *QUICK, "seed=0,1", "sweep.name=finished")
    assert status == 0, stderr
    assert "2 runs, 1 completed, 1 interrupted" in stderr
    assert f"{name}" in stderr
    assert timeless(record_of(one)) == timeless(before)
    assert (other / "run.json").read_bytes() == kept
    if name != "run.json":
        assert (one / name).read_bytes() == content
    assert json.loads((finished / "table.json").read_text())["missing"] == []


def test_a_cell_with_a_wrong_value_is_in_the_report(place: Workplace, finished: Path) -> None:
    """It is not a run, so it has no id; the other cell has the default value and is finished."""
    status, stderr = place.train("-m", *QUICK, "seed=0", "lora.r=0,16", "sweep.name=finished")
    assert status == 1, stderr
    assert stderr.splitlines()[-2] == "1 of 2 runs are missing:", stderr
    (missing,) = json.loads((finished / "table.json").read_text())["missing"]
    assert missing["run_id"].endswith("seed=0 lora.r=0 sweep.name=finished")
    assert missing["reason"].startswith("failed: lora.r=0: ")


def test_failed_cells_are_retried_unless_retry_failed_is_false(place: Workplace) -> None:
    sweep = ("-m", *QUICK, "seed=7,8", "sweep.name=retried")
    folder = place.folder / "multirun" / "retried"
    status, stderr = place.train(*sweep, moment=("tometune.training.sft:save_adapter", 1, "SIGKILL"))
    assert status == -9
    (run,) = folder.glob("*/run.json")
    record = json.loads(run.read_text())
    run.write_text(json.dumps(record | {"status": "failed", "error": "RuntimeError: boom"}))

    status, stderr = place.train(*sweep, "sweep.retry_failed=false")
    assert status == 1
    assert f"{run.parent.name}: failed: RuntimeError: boom" in stderr
    assert record_of(run.parent)["attempts"] == 1
    assert sorted(entry["status"] for entry in runs_in(folder).values()) == ["completed", "failed"]

    status, stderr = place.train(*sweep)
    assert status == 0, stderr
    assert record_of(run.parent)["attempts"] == 2
    assert "error" not in record_of(run.parent)


@pytest.mark.nightly
def test_two_processes_share_a_sweep(place: Workplace) -> None:
    """Both start at the same time; each cell is run once, by either of them."""
    command = [sys.executable, "-m", "tometune.train", "-m", *QUICK, "seed=0,1,2,3", "sweep.name=shared"]
    options: dict[str, Any] = {"env": place.env, "cwd": place.folder, "text": True, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) for _ in range(2)]
    outcomes = []
    for process in processes:
        _, stderr = process.communicate(timeout=250)
        outcomes.append((process.returncode, stderr))
    records = runs_in(place.folder / "multirun" / "shared")
    assert [(entry["status"], entry["attempts"]) for entry in records.values()] == [("completed", 1)] * 4, outcomes
    begun = [re.findall(r"^training: ", stderr, re.MULTILINE) for _, stderr in outcomes]
    assert len(begun[0]) + len(begun[1]) == 4
    assert all(begun), "both had a share"
    pids = {str(process.pid) for process in processes}
    left = re.findall(r"already being run by process (\d+) on \S+; skipped", "".join(stderr for _, stderr in outcomes))
    assert left
    assert set(left) <= pids
    assert min(status for status, _ in outcomes) == 0, "the last to end finds nothing missing"
    for status, stderr in outcomes:
        assert (status == 1) == ("running elsewhere: process " in stderr)


def test_a_second_terminal_sees_who_works_on_a_single_run(place: Workplace) -> None:
    long = (*QUICK, "trainer.max_steps=400", "paths.outputs=single")
    command = [sys.executable, "-m", "tometune.train", *long]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, env=place.env, cwd=place.folder, **quiet)
    try:
        while not list(place.folder.glob("single/*/.lock")):
            time.sleep(0.05)
        status, stderr = place.train(*long)
        assert status == 2
        line = stderr.splitlines()[-1]
        assert re.match(
            rf"single/tiny-\S+: already being run by process {first.pid} on \S+ \(since \S+\); wait", line
        ), line
    finally:
        first.kill()
        first.wait()


def test_the_runs_of_a_sweep_are_those_of_single_commands(place: Workplace, finished: Path) -> None:
    status, stderr = place.train(*QUICK, "seed=1")
    assert status == 0, stderr
    single = place.run_folder()
    assert adapter_of(single) == adapter_of(finished / single.name)
