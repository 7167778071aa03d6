"""Runs that are killed or stopped, and resumed by the same command: on a CPU the result is the same, bit for bit."""

import random
import signal

import pytest

from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, scores_of

pytestmark = pytest.mark.whole

SMOKE = ("+experiment=smoke", "trainer.max_steps=12", "trainer.save_steps=3", "trainer.learning_rate=1e-2")
RESUME = "run the same command again to resume"

draw = random.Random(7)
STEP = "tometune.training.trainer:MeteredTrainer.training_step"
ANSWERS = "tometune.evaluation.scoring:write_result"
DEATHS = {
    "while the rows are tokenised": ("tometune.data.tokens:tokenise", 1, "SIGTERM"),
    "in the base evaluation": (ANSWERS, draw.randint(1, 4), "SIGKILL"),
    "in training, by Ctrl-C": (STEP, draw.randint(4, 6), "SIGINT"),
    "while a checkpoint is saved": ("transformers:Trainer._save_rng_state", 1, "SIGKILL"),
    "in training": (STEP, draw.randint(2, 3), "SIGKILL"),
    "in training, by a closed terminal": (STEP, 2, "SIGHUP"),
    "after the last step": ("tometune.training.sft:save_adapter", 1, "SIGKILL"),
    "before the record of the training": ("tometune.runs.run:Run.save", 3, "SIGKILL"),
    "in the tuned evaluation": (ANSWERS, draw.randint(2, 4), "SIGTERM"),
}
"""One after the other, in the life of one run."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("unbroken"))
    status, stderr = place.train(*SMOKE)
    assert status == 0, stderr
    return place


@pytest.mark.nightly
def test_a_run_that_dies_again_and_again_ends_as_the_unbroken_one(unbroken):
    outputs = (*SMOKE, "paths.outputs=broken")
    for where, moment in DEATHS.items():
        number = signal.Signals[moment[2]]
        status, stderr = unbroken.train(*outputs, moment=moment)
        assert status == (-number if number is signal.SIGKILL else 128 + number), f"{where}: {stderr}"
        assert "Traceback" not in stderr
        if number is not signal.SIGKILL:
            ending = "interrupted" if number is signal.SIGINT else f"stopped by {number.name}"
            assert stderr.splitlines()[-1] == f"{ending}; {RESUME}"
        if where == "while the rows are tokenised":
            continue  # there is no run yet
        run = unbroken.run_folder("broken")
        assert record_of(run)["status"] == "running", where
        if number is signal.SIGHUP:
            step = int(stderr.partition("checkpoint saved at step ")[2].split()[0])
            assert (run / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").exists()
            assert step % 3, "saved because of the signal, not because it was due"

    status, stderr = unbroken.train(*outputs)
    assert status == 0, stderr
    whole, record = unbroken.run_folder(), record_of(run)
    assert (record["status"], record["attempts"]) == ("completed", len(DEATHS))
    assert adapter_of(run) == adapter_of(whole)
    assert curve_of(run) == curve_of(whole)
    assert [step for step, _ in curve_of(run)] == list(range(1, 13))
    assert scores_of(run) == scores_of(whole)
    assert answers_of(run) == answers_of(whole)
    for name in ("steps", "epochs", "tokens", "padded_tokens", "trained_tokens", "final_loss"):
        assert record["train"][name] == record_of(whole)["train"][name], name
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "nothing half-written is left"


def test_a_completed_run_prints_its_table_and_needs_no_torch(unbroken):
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


def test_a_failed_run_is_tried_again(unbroken):
    run = unbroken.run_folder()
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"status": "completed"', '"status": "failed"'))
    status, stderr = unbroken.train(*SMOKE)
    assert status == 0, stderr
    assert (record_of(run)["status"], record_of(run)["attempts"]) == ("completed", 2)
    assert "training: " not in stderr, "its adapter is there"
    assert stderr.count("(reused)") == 8
