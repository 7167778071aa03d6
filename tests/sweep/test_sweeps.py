"""Whole sweeps on tiny weights: skipped, retried and failed cells, two processes, overhead, and the final message."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.conftest import QUICK, SWEEP, runs_in
from tests.whole import Workplace, adapter_of, answers_of, record_of
from tometune.runs.lock import run_lock

pytestmark = pytest.mark.whole

WATCH = """
import collections, json, pkgutil, runpy, sys
counts = collections.Counter()
def counted(place):
    module, full_name = place.split(":")
    name = full_name.rpartition(".")[2]
    owner = pkgutil.resolve_name(place.rpartition("." if "." in full_name else ":")[0])
    real = getattr(owner, name)
    def call(*arguments, **keywords):
        counts[full_name] += 1
        return real(*arguments, **keywords)
    setattr(owner, name, call)
for place in PLACES:
    counted(place)
runpy.run_module("tometune.train", run_name="__main__", alter_sys=True)
heavy = sorted({"torch", "transformers", "trl", "datasets", "wandb"} & set(sys.modules))
print(json.dumps([counts, heavy]))
"""
"""Runs `train`, counts the calls of some functions, and lists the heavy modules that were imported."""

PLACES = (
    *("tometune.models.load:load_model", "tometune.models.tokenizer:load_tokenizer"),
    *("tometune.data.mix:build_mix", "tometune.data.tokens:tokenise", "tometune.evaluation.tasks:load_tasks"),
    *("tometune.training.sft:fit", "tometune.evaluation.scoring:Scorer.stage"),
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
    assert counts == {name.partition(":")[2]: 2 for name in PLACES} | {"load_model": 1}  # the second run uses it again
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
    assert sorted(entry["status"] for entry in records_in(folder).values()) == ["completed", "failed"]

    status, stderr = place.train(*sweep)
    assert status == 0, stderr
    assert record_of(run.parent)["attempts"] == 2
    assert "error" not in record_of(run.parent)


def start(place: Workplace, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tometune.train", *overrides]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=place.env, cwd=place.folder, **pipes)


@pytest.mark.nightly
def test_two_processes_share_a_sweep(place):
    """Both start at the same time; each cell is run once, by either of them."""
    processes = [start(place, "-m", *QUICK, "seed=0,1,2,3", "sweep.name=shared") for _ in range(2)]
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


@pytest.mark.nightly
def test_a_run_of_another_process_is_missing_in_the_report_and_exits_1(place):
    command = ("-m", *QUICK, "seed=0,1", "sweep.name=taken")
    folder = place.folder / "multirun" / "taken"
    status, stderr = place.train(*command, "lora.r=0", "sweep.name=taken")
    assert status == 2, stderr
    status, stderr = place.train("-m", *QUICK, "seed=1", "sweep.name=taken")
    assert status == 0, stderr
    (run,) = folder.glob("*/run.json")
    shutil.rmtree(run.parent)
    with run_lock(run.parent):
        status, stderr = place.train(*command)
    assert status == 1, stderr
    assert f"1 of 2 runs are missing:\n  {run.parent.name}: running elsewhere" in stderr
    table = json.loads((folder / "table.json").read_text())
    assert [entry["run_id"] for entry in table["missing"]] == [run.parent.name]
    assert f"missing: {run.parent.name}" in (folder / "report.html").read_text()
    status, stderr = place.train(*command)
    assert status == 0, stderr
    assert json.loads((folder / "table.json").read_text())["missing"] == []


def test_a_second_terminal_sees_who_works_on_a_single_run(place):
    long = (*QUICK, "trainer.max_steps=400", "paths.outputs=single")
    first = start(place, *long)
    try:
        while not list(place.folder.glob("single/*/.lock")):
            time.sleep(0.05)
        status, stderr = place.train(*long)
        line = stderr.splitlines()[-1]
        owner = rf"process {first.pid} on \S+ \(since \S+\)"
        assert status == 2
        assert re.match(rf"single/tiny-\S+: already being run by {owner}; wait", line), line
    finally:
        first.kill()
        first.communicate()


def test_the_runs_of_a_sweep_are_those_of_single_commands(place, finished):
    """Also of the second one, which uses the base model that the first one loaded and TRL's trainer patched."""
    status, stderr = place.train(*QUICK, "seed=1")
    assert status == 0, stderr
    single = place.run_folder()
    assert adapter_of(single) == adapter_of(finished / single.name)
    assert answers_of(single) == answers_of(finished / single.name) != {}


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
