"""Runs that are killed or stopped, and resumed by the same command: on a CPU the result is the same, bit for bit."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import SMOKE
from tests.training.conftest import packs, settings
from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, scores_of
from tometune.common.process import Stopped

TWELVE = ("+experiment=smoke", "trainer.max_steps=12", "trainer.save_steps=3", "trainer.learning_rate=1e-2")
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


@pytest.mark.whole
@pytest.mark.nightly
def test_a_run_that_dies_again_and_again_ends_as_the_unbroken_one(place):
    status, stderr = place.train(*TWELVE)
    assert status == 0, stderr
    whole, outputs = place.run_folder(), (*TWELVE, "paths.outputs=broken")
    for where, moment in DEATHS.items():
        number = signal.Signals[moment[2]]
        status, stderr = place.train(*outputs, moment=moment)
        assert status == (-number if number is signal.SIGKILL else 128 + number), f"{where}: {stderr}"
        assert "Traceback" not in stderr
        if number is not signal.SIGKILL:
            ending = "interrupted" if number is signal.SIGINT else f"stopped by {number.name}"
            assert stderr.splitlines()[-1] == f"{ending}; {RESUME}"
        if where == "while the rows are tokenised":
            continue  # there is no run yet
        run = place.run_folder("broken")
        assert record_of(run)["status"] == "running", where
        if number is signal.SIGHUP:
            step = int(stderr.partition("checkpoint saved at step ")[2].split()[0])
            assert (run / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").exists()
            assert step % 3, "saved because of the signal, not because it was due"

    status, stderr = place.train(*outputs)
    assert status == 0, stderr
    record = record_of(run)
    assert (record["status"], record["attempts"]) == ("completed", len(DEATHS))
    assert adapter_of(run) == adapter_of(whole)
    assert curve_of(run) == curve_of(whole)
    assert [step for step, _ in curve_of(run)] == list(range(1, 13))
    assert scores_of(run) == scores_of(whole)
    assert answers_of(run) == answers_of(whole)
    for name in ("steps", "epochs", "tokens", "padded_tokens", "trained_tokens", "final_loss"):
        assert record["train"][name] == record_of(whole)["train"][name], name
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "nothing half-written is left"


@pytest.mark.whole
def test_a_completed_run_prints_its_table_and_needs_no_torch(finished, tmp_path):
    copy = Workplace(Path(shutil.copytree(finished.folder, tmp_path / "copy")))
    run = copy.run_folder()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    (tmp_path / "watch.py").write_text(
        "import runpy, sys\n"
        "runpy.run_module('tometune.train', run_name='__main__', alter_sys=True)\n"
        "print('heavy:', *sorted({'torch', 'transformers', 'trl', 'datasets', 'wandb'} & set(sys.modules)))\n"
    )
    done = copy.python(str(tmp_path / "watch.py"), *SMOKE)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert "ROUGE-L" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.whole
def test_a_failed_run_is_tried_again(finished, place):
    run = place.folder / "failed" / finished.run_folder().name
    shutil.copytree(finished.run_folder(), run)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"status": "completed"', '"status": "failed"'))
    status, stderr = place.train(*SMOKE, "paths.outputs=failed")
    assert status == 0, stderr
    assert (record_of(run)["status"], record_of(run)["attempts"]) == ("completed", 2)
    assert "training: " not in stderr, "its adapter is there"
    assert stderr.count("(reused)") == 8


CASES = [
    ("plain", 3, {}),
    ("dropout and packing", 1, packs(96, 2) | {"max_steps": 5, "num_train_epochs": 9, "logging_steps": 3}),
    *(
        pytest.param(name, 2, trainer, marks=pytest.mark.nightly)
        for name, trainer in {
            "accumulation": {"conversations_per_step": 3, "micro_batch": 1},
            "checkpointing": {"gradient_checkpointing": True},
            "epochs": {"max_steps": None, "num_train_epochs": 2.0, "conversations_per_step": 6},
            "workers": {"dataloader_num_workers": 1},
        }.items()
    ),
]
"""A name, the step in which the signal comes, and settings of the trainer."""


@pytest.mark.parametrize(("name", "step", "trainer"), CASES)
def test_stopped_and_resumed_is_bit_for_bit_unbroken(plain, train, tmp_path, name, step, trainer):
    def stop(_: dict[str, float], at: int) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    config = settings(**trainer)
    config.lora.lora_dropout = 0.1 if "dropout" in name else 0.0
    unbroken = plain if name == "plain" else train(tmp_path / "unbroken", config)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "broken", config, on_log=stop)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    saved = {path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert f"checkpoint-{step + 1}" in saved, "the step after the signal is finished and saved"
    assert not (tmp_path / "broken" / "adapter").exists()

    resumed = train(tmp_path / "broken", config)
    assert resumed.adapter == unbroken.adapter
    assert resumed.curve == unbroken.curve
    assert resumed.counts == unbroken.counts
    assert len(resumed.batches) < len(unbroken.batches)


def test_interrupted_after_the_last_checkpoint_trains_no_further_step(train, tmp_path):
    whole = train(tmp_path, settings())
    before, curve = whole.adapter, (tmp_path / "metrics.jsonl").read_bytes()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"checkpoint-4", "checkpoint-6"}, "save_total_limit=2"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / ".adapter.0123abcd.tmp").mkdir()  # as a kill leaves it
    again = train(tmp_path, settings())
    assert (again.adapter, again.batches, again.counts) == (before, [], whole.counts)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve
    assert not list(tmp_path.glob(".adapter.*"))
