"""Runs that are killed or stopped, and resumed by the same command: on a CPU the result is the same, bit for bit."""

import random

import pytest

from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, scores_of

pytestmark = pytest.mark.whole

SMOKE = ("+experiment=smoke", "trainer.max_steps=12", "trainer.save_steps=3", "trainer.learning_rate=1e-2")

draw = random.Random(7)
STEP = "tometune.training.trainer:MeteredTrainer.training_step"
ANSWERS = "tometune.evaluation.scoring:write_result"
DEATHS = {
    "in the base evaluation": ((ANSWERS, draw.randint(1, 4), "SIGKILL"), -9),
    "in training, by Ctrl-C": ((STEP, draw.randint(4, 6), "SIGINT"), 130),
    "while a checkpoint is saved": (("transformers:Trainer._save_rng_state", 1, "SIGKILL"), -9),
    "in training": ((STEP, draw.randint(2, 3), "SIGKILL"), -9),
    "in training, by SIGTERM": ((STEP, 2, "SIGTERM"), 143),
    "after the last step": (("tometune.training.sft:save_adapter", 1, "SIGKILL"), -9),
    "before the record of the training": (("tometune.runs.run:Run.save", 3, "SIGKILL"), -9),
    "in the tuned evaluation": ((ANSWERS, draw.randint(2, 4), "SIGKILL"), -9),
}
"""One after the other, in the life of one run."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("unbroken"))
    done = place.verb("train", *SMOKE)
    assert done.returncode == 0, done.stderr
    return place


def test_a_run_that_dies_again_and_again_ends_as_the_unbroken_one(unbroken: Workplace) -> None:
    outputs = (*SMOKE, "paths.outputs=broken")
    for number, (where, (moment, status)) in enumerate(DEATHS.items(), start=1):
        found, stderr = unbroken.train(*outputs, moment=moment)
        assert found == status, f"{where}: {stderr}"
        assert "Traceback" not in stderr
        run = unbroken.run_folder("broken")
        record = record_of(run)
        assert (record["status"], record["attempts"]) == ("running", number), where
        if where == "in training, by Ctrl-C":
            assert stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
        if where == "in training, by SIGTERM":
            step = int(stderr.partition("checkpoint saved at step ")[2].split()[0])
            assert (run / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").exists()
            assert step % 3, "saved because of the signal, not because it was due"

    done = unbroken.verb("train", *outputs)
    assert done.returncode == 0, done.stderr
    whole = unbroken.run_folder()
    record = record_of(run)
    assert (record["status"], record["attempts"]) == ("completed", len(DEATHS) + 1)
    assert adapter_of(run) == adapter_of(whole)
    assert curve_of(run) == curve_of(whole)
    assert [step for step, _ in curve_of(run)] == list(range(1, 13))
    assert scores_of(run) == scores_of(whole)
    assert answers_of(run) == answers_of(whole)
    for name in ("steps", "epochs", "tokens", "padded_tokens", "trained_tokens", "final_loss"):
        assert record["train"][name] == record_of(whole)["train"][name], name
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "nothing half-written is left"


def test_a_completed_run_prints_its_table_and_needs_no_torch(unbroken: Workplace) -> None:
    run = unbroken.run_folder()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    watch = unbroken.folder / "watch.py"
    watch.write_text(
        "import runpy, sys\n"
        "runpy.run_module('tometune.train', run_name='__main__', alter_sys=True)\n"
        "print('heavy:', *sorted({'torch', 'transformers', 'trl', 'datasets', 'wandb'} & set(sys.modules)))\n"
    )
    done = unbroken.python(str(watch), *SMOKE)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert "ROUGE-L" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_failed_run_is_tried_again(unbroken: Workplace) -> None:
    run = unbroken.run_folder()
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"status": "completed"', '"status": "failed"'))
    status, stderr = unbroken.train(*SMOKE)
    assert status == 0, stderr
    record = record_of(run)
    assert (record["status"], record["attempts"]) == ("completed", 2)
    assert "training: " not in stderr, "its adapter is there"
    assert stderr.count("(reused)") == 8
