"""`evaluate` as a user runs it: a run on its own tasks and on others, a model by itself, and what is rejected."""

import json
import shutil
from pathlib import Path

import pytest

from tests.whole import Workplace, answers_of, record_of, timeless
from tometune.tracking.tracker import program

TASK = ("eval=files", "~eval.tasks.question_answering", "~eval.tasks.data_to_text", "~eval.tasks.instruction_following")


@pytest.fixture(scope="module")
def run(finished: Workplace, place: Workplace) -> Path:
    """A finished run under outputs/ of `place`, next to a file with a task."""
    rows = [{"id": str(n), "input": f"text {n}", "references": ["a text", f"text {n}"]} for n in range(4)]
    (place.folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    original = finished.run_folder()
    return Path(shutil.copytree(original, place.folder / "outputs" / original.name))


@pytest.mark.whole
def test_a_run_on_its_own_tasks_scores_what_was_lost(place, run):
    before, answers = record_of(run), answers_of(run)
    (run / "eval" / "tuned" / "summarisation.jsonl").unlink()
    done = place.verb("evaluate", f"run={run.name}", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert answers_of(run) == answers
    assert timeless(record_of(run)) == timeless(before)
    assert not (run / "evaluations").exists()
    assert "gain" in done.stdout


@pytest.mark.whole
@pytest.mark.nightly
def test_a_run_with_held_out_rows_is_scored_on_them_again(place):
    quick = ("+experiment=smoke", "~eval.tasks.summarisation", "~eval.tasks.question_answering", "tracking=none")
    status, stderr = place.train(*quick, "trainer.max_steps=2", "data.held_out.rows=4", "paths.outputs=held")
    assert status == 0, stderr
    run = place.run_folder("held")
    before, answers = record_of(run), answers_of(run)
    assert {"held_out_base", "held_out_pool"} < set(before["eval"]["tuned"]["tasks"])
    (run / "eval" / "tuned" / "held_out_pool.jsonl").unlink()
    done = place.verb("evaluate", f"run={run}", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert answers_of(run) == answers
    assert timeless(record_of(run)) == timeless(before)
    assert not (run / "evaluations").exists()


@pytest.mark.whole
def test_a_run_on_other_or_more_tasks_leaves_its_record_alone(place, run):
    before = (run / "run.json").read_bytes()
    choice = (f"run={run}", *TASK, "eval.tasks.summarisation.path=mine.jsonl", "tracking=none")
    done = place.verb("evaluate", *choice)
    assert done.returncode == 0, done.stderr
    (file,) = run.glob("evaluations/files-*/evaluation.json")
    record = json.loads(file.read_text())
    assert record["status"] == "completed"
    assert [stage["tasks"]["summarisation"]["examples"] for stage in record["eval"].values()] == [4, 4]
    again = place.verb("evaluate", *choice)
    assert (again.returncode, json.loads(file.read_text())) == (0, record)
    assert "nothing to do" in again.stderr

    task = ("+eval/task@eval.tasks.mine=jsonl", "eval.tasks.mine.path=mine.jsonl", "eval.tasks.mine.max_new_tokens=4")
    done = place.verb("evaluate", f"run={run}", *task, "eval.base=false", "tracking=none")
    assert done.returncode == 0, done.stderr
    stages = [json.loads(path.read_text())["eval"]["tuned"] for path in run.glob("evaluations/*/evaluation.json")]
    assert [len(stage["tasks"]) for stage in stages if "mine" in stage["tasks"]] == [5]
    assert (run / "run.json").read_bytes() == before


@pytest.mark.whole
def test_a_model_by_itself(place):
    choice = ("model=tiny", "eval=pydocs", "eval.limit=1", "eval.temperature=1.0", "seed=3", "paths.outputs=alone")
    done = place.verb("evaluate", *choice)
    assert done.returncode == 0, done.stderr
    (folder,) = (place.folder / "alone").glob("tiny-pydocs-s3-*")
    record = json.loads((folder / "evaluation.json").read_text())
    assert list(record["eval"]) == ["base"]
    assert record["tracking"]["mode"] == "offline"
    assert "LIMIT" in done.stdout
    assert f"{program('wandb')} sync {folder.relative_to(place.folder)}/wandb/offline*" in done.stdout


# tests/golden/errors.txt has more of these lines.
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["run={run}", "trainer.max_steps=5"], "trainer.max_steps=5: only train and prepare read it"),
        (["run={run}", "model=llama32_1b"], "model: the run has its own; leave it out, or score a model by itself"),
        (["run={run}", "+experiment=smoke"], "experiment: the run has its own; leave it out"),
        (["run={run}", "seed=1"], "seed: the run has its own; leave it out"),
        (["run=outputs"], "outputs: holds no run.json; name a run folder, e.g. run=outputs/<run_id>"),
        (["model=llama32_3b"], "model=llama32_3b: its 4-bit weights (model.quantization=nf4) need an NVIDIA GPU"),
        (["model.id=./nowhere", "model.quantization=none"], "model.id=./nowhere: "),
    ],
)
def test_what_is_rejected(place, run, overrides, line):
    done = place.verb("evaluate", *(text.format(run=run) for text in overrides))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr
