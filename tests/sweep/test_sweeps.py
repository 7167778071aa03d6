"""Whole sweeps on tiny weights: skipped, retried and failed cells, two processes, overhead, and the final message."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.conftest import QUICK, SWEEP, check_runs, runs_in
from tests.whole import Workplace, adapter_of, answers_of, record_of
from tometune.runs.lock import run_lock

pytestmark = pytest.mark.whole

WATCH = """
import json, pkgutil, runpy, sys
from unittest import mock
real = {place: pkgutil.resolve_name(place) for place in PLACES}
spies = {place: mock.patch(place, autospec=True, side_effect=real[place]).start() for place in PLACES}
runpy.run_module("tometune.train", run_name="__main__", alter_sys=True)
heavy = sorted({"torch", "transformers", "trl", "datasets", "wandb"} & set(sys.modules))
print(json.dumps([{place: spy.call_count for place, spy in spies.items()}, heavy]))
"""
"""Runs `train`, counts the calls of some functions, and lists the heavy modules that were imported."""

LOAD = "tometune.models.load.load_model"
PLACES = (
    *(LOAD, "tometune.models.tokenizer.load_tokenizer", "tometune.data.mix.build_mix", "tometune.data.tokens.tokenise"),
    *("tometune.evaluation.tasks.load_tasks", "tometune.training.sft.fit", "tometune.evaluation.scoring.Scorer.stage"),
)


def records_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: record_of(run) for name, run in runs_in(folder).items()}


def watched(place: Workplace, places: tuple[str, ...], *overrides: str) -> tuple[str, list[Any]]:
    """Run `train` under `WATCH`; returns stderr, and the counts and modules."""
    script = place.folder / "watch.py"
    script.write_text(WATCH.replace("PLACES", repr(places)))
    done = place.python(str(script), *overrides)
    assert done.returncode == 0, done.stderr
    return done.stderr, json.loads(done.stdout.splitlines()[-1])


def test_the_same_command_again_runs_nothing_and_imports_no_torch(place, finished):
    listed = [entry["run_id"] for entry in json.loads((finished / "sweep.json").read_text())["cells"]]
    assert sorted(listed) == sorted(records_in(finished))
    assert [record["status"] for record in records_in(finished).values()] == ["completed"] * 2
    assert not list(finished.glob("*/.lock"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    stderr, found = watched(place, (), *SWEEP, "sweep.name=finished")
    assert (stderr, found) == ("sweep multirun/finished: 2 runs, 2 completed\n", [{}, []])
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    # Rewritten for the same runs.
    report = (".sweep.lock", ".report.lock", "table.json", "table.csv", "table.md", "report.html")
    assert {path for path in after if after[path] != before.get(path)} - {finished} <= {finished / n for n in report}


@pytest.mark.nightly
def test_a_larger_sweep_of_the_same_name_runs_what_is_new_and_loads_all_once(place, finished):
    attempts = {name: record["attempts"] for name, record in records_in(finished).items()}
    stderr, (counts, _) = watched(place, PLACES, "-m", *QUICK, "seed=0,1,2,3", "sweep.name=finished")
    assert counts == dict.fromkeys(PLACES, 2) | {LOAD: 1}  # the second run uses it again
    assert "4 runs, 2 completed, 2 not started" in stderr
    assert stderr.count("nothing to do") == 2
    now = records_in(finished)
    assert len(now) == 4
    assert {name: now[name]["attempts"] for name in attempts} == attempts


def test_a_wrong_value_is_reported_and_does_not_stop_the_others(place, finished):
    (finished / "table.json").unlink()
    status, stderr = place.train("-m", *QUICK, "seed=0", "lora.r=0,16", "sweep.name=finished")  # finished with 16
    assert (status, stderr.splitlines()[-2]) == (1, "1 of 2 runs are missing:"), stderr
    (missing,) = json.loads((finished / "table.json").read_text())["missing"]
    assert missing["run_id"].endswith("seed=0 lora.r=0 sweep.name=finished")
    assert missing["reason"].startswith("failed: lora.r=0: ")
    assert (missing["model"], missing["data"], missing["seed"]) == ("tiny", "pydocs_64", 0)


def test_failed_cells_are_retried_unless_retry_failed_is_false(place):
    sweep = ("-m", *QUICK, "sweep.name=retried")
    folder = place.folder / "multirun" / "retried"
    status, stderr = place.train(*sweep, "seed=7", moment=("tometune.training.sft:save_adapter", 1, "ENOSPC"))
    assert status == 1, stderr
    (failed,) = runs_in(folder)
    for more, expected in ((["sweep.retry_failed=false"], "failed"), ([], "completed")):
        status, stderr = place.train(*sweep, "seed=7,8", *more)
        records = records_in(folder)
        assert (f"  {failed}: failed: SaveError: " in stderr) == ("error" in records[failed]) == (expected == "failed")
        assert (status, records[failed]["attempts"]) == ((1, 1) if expected == "failed" else (0, 2)), stderr
        assert sorted(record["status"] for record in records.values()) == ["completed", expected]


@pytest.mark.nightly
def test_two_processes_share_a_sweep(place):
    """Both start at the same time; each cell is run once, by either of them."""
    command = [sys.executable, "-m", "tometune.train", "-m", *QUICK, "seed=0,1,2,3", "sweep.name=shared"]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=place.env, cwd=place.folder, **pipes) for _ in range(2)]
    outcomes = [(process.communicate(timeout=250)[1], process.returncode) for process in processes]
    records = records_in(place.folder / "multirun" / "shared")
    assert [(entry["status"], entry["attempts"]) for entry in records.values()] == [("completed", 1)] * 4, outcomes
    begun = [len(re.findall(r"^training: ", stderr, re.MULTILINE)) for stderr, _ in outcomes]
    assert (sum(begun), all(begun)) == (4, True), "both had a share"
    stderr = "".join(stderr for stderr, _ in outcomes)
    left = re.findall(r"already being run by process (\d+) on \S+; skipped", stderr)
    assert set(left) <= {str(process.pid) for process in processes}
    assert left
    assert min(status for _, status in outcomes) == 0, "the last to end finds nothing missing"
    for stderr, status in outcomes:
        assert (status == 1) == ("runs are missing:" in stderr)
    table = json.loads((place.folder / "multirun" / "shared" / "table.json").read_text())
    assert table["missing"] == [], "the last one to read the sweep wrote the report"


def test_a_single_run_is_that_of_a_sweep_and_a_second_terminal_sees_who_works_on_it(place, finished):
    """The sweep's second run, which used the base model that the first one had loaded and TRL's trainer patched."""
    command, (_, name) = (*QUICK, "seed=1", "paths.outputs=single"), runs_in(finished)
    run = place.folder / "single" / name
    with run_lock(run):
        status, stderr = place.train(*command)
    owner = rf"process {os.getpid()} on \S+ \(since \S+\)"
    assert status == 2
    assert re.match(rf"single/{name}: already being run by {owner}; wait", stderr.splitlines()[-1]), stderr
    status, stderr = place.train(*command)
    assert status == 0, stderr
    assert adapter_of(run) == adapter_of(finished / name)
    assert answers_of(run) == answers_of(finished / name) != {}


def test_processes_make_the_same_runs_and_report_errors_at_the_end(place, finished):
    """The base has only 1,000 rows, which is noticed in the run's process."""
    launcher = ("sweep.name=failing", "hydra/launcher=processes")
    done = place.verb("train", *SWEEP, "data.rows=64,100000", *launcher)
    check_runs(finished, "failing", done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, count, one, two = done.stderr.splitlines()
    assert count == "2 of 4 runs are missing:", done.stderr
    for line in (one, two):
        assert re.match(r"  tiny-pydocs_64-s[01]-\w{8}: failed: data\.base\.rows=100000: the base has 1,000 ", line)
    cells = json.loads((finished.with_name("failing") / "sweep.json").read_text())["cells"]
    assert ["error" in cell for cell in cells] == [False, True, False, True]


def test_a_data_file_that_was_replaced_makes_other_cells(place):
    """The second run has another seed and other rows: they are two cells, and the report says so."""
    file = place.folder / "rows.jsonl"
    command = ("-m", *QUICK, "data=files_100k", f"data.base.path={file}", "data.rows=8", "sweep.name=replaced")
    for seed, word in enumerate(("red", "blue")):
        turns = [[("user", f"Say {word} {row}."), ("assistant", f"{word} {row}")] for row in range(8)]
        rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        status, stderr = place.train(*command, f"seed={seed}")
        assert status == 0, stderr
    table = json.loads((place.folder / "multirun" / "replaced" / "table.json").read_text())
    cells = [row["cell"] for row in table["rows"] if row["stage"] == "tuned"]
    assert len(cells) == 2
    assert all(re.fullmatch(r"pydocs_64 data\.base=files-\w{8}", cell) for cell in cells), cells
    assert [row["seeds"] for row in table["rows"] if row["stage"] == "tuned"] == [1, 1]
    assert any(note.startswith("The content of data.base is not the same in all runs") for note in table["notes"])
