"""`evaluate` as a user runs it: a run on its own tasks and on others, a model by itself, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tometune.tracking.tracker import program

SMOKE = ("+experiment=smoke", "trainer.max_steps=2")
TASK = ("eval=files", "~eval.tasks.question_answering", "~eval.tasks.data_to_text", "~eval.tasks.instruction_following")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run on `tiny`, under outputs/, and its cache."""
    folder = tmp_path_factory.mktemp("trained")
    done = verb(folder, "train", *SMOKE)
    assert done.returncode == 0, done.stderr
    rows = [{"id": str(n), "input": f"text {n}", "references": ["a text", f"text {n}"]} for n in range(4)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def verb(folder: Path, name: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"tometune.{name}", *overrides, f"paths.cache={folder}/cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def run_of(folder: Path) -> Path:
    (run,) = (folder / "outputs").glob("tiny-pydocs_64-s0-*")
    return run


@pytest.mark.whole
def test_a_run_on_its_own_tasks_mends_what_was_lost(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "copy"))
    run = run_of(folder)
    before = json.loads((run / "run.json").read_text())
    lost = run / "eval" / "tuned" / "summarisation.jsonl"
    kept = lost.read_text()
    lost.unlink()
    done = verb(folder, "evaluate", f"run={run.name}", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert lost.read_text() == kept
    after = json.loads((run / "run.json").read_text())
    for record in (before, after):
        for stage in record["eval"].values():
            del stage["seconds"], stage["tokens_per_second"]
            for task in stage["tasks"].values():
                del task["seconds"]
    assert after == before
    assert not (run / "evaluations").exists()
    assert "gain" in done.stdout


@pytest.mark.whole
def test_a_run_on_other_tasks_leaves_its_record_alone(trained):
    run = run_of(trained)
    before = (run / "run.json").read_bytes()
    choice = (f"run={run}", *TASK, "eval.tasks.summarisation.path=mine.jsonl", "tracking=none")
    done = verb(trained, "evaluate", *choice)
    assert done.returncode == 0, done.stderr
    (folder,) = (run / "evaluations").glob("files-*")
    record = json.loads((folder / "evaluation.json").read_text())
    assert (run / "run.json").read_bytes() == before
    assert record["status"] == "completed"
    assert {name: stage["tasks"]["summarisation"]["examples"] for name, stage in record["eval"].items()} == {
        "base": 4,
        "tuned": 4,
    }
    written = (folder / "evaluation.json").stat().st_mtime_ns
    again = verb(trained, "evaluate", *choice)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert (folder / "evaluation.json").stat().st_mtime_ns == written


@pytest.mark.whole
def test_a_task_is_added_to_the_runs_own(trained):
    task = ("+eval/task@eval.tasks.mine=jsonl", "eval.tasks.mine.path=mine.jsonl", "eval.tasks.mine.max_new_tokens=4")
    done = verb(trained, "evaluate", f"run={run_of(trained)}", *task, "eval.base=false", "tracking=none")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in run_of(trained).glob("evaluations/*/evaluation.json")]
    (added,) = [
        list(record["eval"]["tuned"]["tasks"]) for record in records if "mine" in record["eval"]["tuned"]["tasks"]
    ]
    assert len(added) == 5


@pytest.mark.whole
def test_a_model_by_itself(trained):
    done = verb(trained, "evaluate", "model=tiny", "eval=pydocs", "eval.limit=1", "eval.temperature=1.0", "seed=3")
    assert done.returncode == 0, done.stderr
    (folder,) = (trained / "outputs").glob("tiny-pydocs-s3-*")
    record = json.loads((folder / "evaluation.json").read_text())
    assert list(record["eval"]) == ["base"]
    assert record["tracking"]["mode"] == "offline"
    assert "LIMIT" in done.stdout
    assert f"{program('wandb')} sync {folder}" in done.stdout


@pytest.mark.whole
@pytest.mark.parametrize("tasks", [(), ("eval.limit=1",)])
def test_one_that_fails_says_why_in_one_line_and_leaves_the_record_alone(trained, tmp_path, tasks):
    run = Path(shutil.copytree(run_of(trained), tmp_path / "run", ignore=shutil.ignore_patterns("evaluations")))
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = (run / "run.json").read_bytes()
    done = verb(trained, "evaluate", f"run={run}", *tasks, "tracking=none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failures = [line for line in done.stderr.splitlines() if "Error" in line]
    assert failures == done.stderr.splitlines()[-1:]
    assert (run / "run.json").read_bytes() == before
    assert not list(run.glob("evaluations/*/evaluation.json"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["run=nope"], "run=nope: no such folder, nor outputs/nope; name a run folder, e.g. run=outputs/<run_id>"),
        (["run={run}", "trainer.max_steps=5"], "trainer.max_steps=5: only train and prepare read it"),
        (["model=tiny", "+lora.r=4"], "+lora.r=4: only train and prepare read it; leave it out"),
        (["run={run}", "plan=true"], "plan=true: only train reads it; leave it out"),
        (["run={run}", "+sweep=seeds"], "+sweep=seeds: only train, prepare and report read it; leave it out"),
        (["run={run}", "model=llama32_1b"], "model: the run has its own; leave it out, or score a model by itself"),
        (["run={run}", "+experiment=smoke"], "experiment: the run has its own; leave it out"),
        (["run={run}", "seed=1"], "seed: the run has its own; leave it out"),
        (["run=outputs"], "outputs: holds no run.json; name a run folder, e.g. run=outputs/<run_id>"),
        (["model=llama32_3b"], "model=llama32_3b: its 4-bit weights (model.quantization=nf4) need an NVIDIA GPU"),
        (["model.id=./nowhere", "model.quantization=none"], "model.id=./nowhere: "),
    ],
)
def test_what_is_refused(trained, overrides, line):
    done = verb(trained, "evaluate", *(text.format(run=run_of(trained)) for text in overrides))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr


def test_a_run_without_an_adapter_or_with_a_broken_config(trained, tmp_path):
    run = Path(shutil.copytree(run_of(trained), tmp_path / "run"))
    shutil.rmtree(run / "adapter")
    done = verb(trained, "evaluate", f"run={run}")
    assert (done.returncode, done.stderr) == (
        2,
        f"{run}: holds no adapter (status completed); finish its training first\n",
    )
    (run / "config.yaml").write_text("seed: one\n")
    done = verb(trained, "evaluate", f"run={run}")
    assert done.returncode == 2
    assert f"{run}/config.yaml: cannot be read as a config" in done.stderr
