"""One run in two processes (torchrun, gloo): the curve of one process, one record, and a resume after any end."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.whole import TORCHRUN, Workplace, adapter_of, curve_of, record_of, scores_of

pytestmark = pytest.mark.whole

RUN = (
    *("+experiment=smoke", "~eval.tasks.summarisation", "~eval.tasks.data_to_text", "data.rows=128"),
    *("trainer.learning_rate=1e-2", "trainer.max_steps=29", "trainer.save_steps=10"),
)

HELPERS = """
import torch
from tometune.common.distributed import by_all, connect, disconnect, rank, sum_gradients

connect()
weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,))]
places = []
for weight in weights:
    weight.grad = torch.arange(float(weight.numel())).view_as(weight) * (1 + 9 * rank())
    places.append(weight.grad.data_ptr())
sum_gradients(weights)
for weight, place in zip(weights, places):
    assert weight.grad.data_ptr() == place, "a CUDA graph writes there"
    assert weight.grad.flatten().tolist() == [11.0 * number for number in range(weight.numel())]
assert by_all(rank) == rank()
try:
    by_all(lambda: 1 // rank())
except ZeroDivisionError:
    print(f"{rank()} raised\\n", end="")
disconnect()
"""

TOLERANCE = 2e-5
"""By which the losses may differ: sums of float32 are taken in another order.

The last step of the epoch is the 28th. The rows, of which 55 are left of the 128, do not fill it.
"""


def test_gradients_are_summed_and_an_error_in_one_process_is_raised_in_all(place, tmp_path):
    (tmp_path / "helpers.py").write_text(HELPERS)
    command = [*TORCHRUN, str(tmp_path / "helpers.py")]
    done = subprocess.run(command, env=place.env, cwd=place.folder, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 raised", "1 raised"]


def start(place: Workplace, *overrides: str, module: str = "tometune.train", **env: str) -> "subprocess.Popen[str]":
    command = [*TORCHRUN, "-m", module, *RUN, "trainer.micro_batch=1", *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=place.env | env, cwd=place.folder, text=True, **pipes)


def run_two(place: Workplace, outputs: str, *overrides: str, **start_with: str) -> tuple[Path, str, str]:
    process = start(place, *overrides, f"paths.outputs={outputs}", **start_with)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return place.run_folder(outputs), out, err


def run_one(place: Workplace, outputs: str, *overrides: str) -> Path:
    status, stderr = place.train(*RUN, "trainer.micro_batch=2", *overrides, f"paths.outputs={outputs}")
    assert status == 0, stderr
    return place.run_folder(outputs)


def assert_same_losses(both: Path, one: Path) -> list[float]:
    assert [step for step, _ in curve_of(both)] == [step for step, _ in curve_of(one)]
    mine, theirs = ([loss for _, loss in curve_of(run)] for run in (both, one))
    assert mine == pytest.approx(theirs, abs=TOLERANCE)
    return mine


@pytest.fixture(scope="module")
def two(place: Workplace) -> tuple[Path, str, str]:
    return run_two(place, "two")


def test_two_processes_do_what_one_does(place, two):
    both, one = two[0], run_one(place, "one")
    losses = assert_same_losses(both, one)
    assert losses[0] - losses[-1] > 0.1, "it learnt something"
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (both, one)]
    for name, tolerance in {"token_accuracy": 1e-6, "entropy": 1e-4, "epoch": 0}.items():
        mine, theirs = ([line[name] for line in run] for run in lines)
        assert mine == pytest.approx(theirs, abs=tolerance), name
    for name in ("steps", "epochs", "effective_batch", "tokens", "trained_tokens"):
        assert record_of(both)["train"][name] == record_of(one)["train"][name], name
    assert scores_of(both).keys() == scores_of(one).keys()
    assert scores_of(both)["base"] == scores_of(one)["base"], "shares of the prompts, the same answers"


def test_one_process_speaks_and_writes(two):
    run, out, err = two
    assert out.count("mean of tasks") == 1
    assert err.count("training: ") == 1
    assert record_of(run)["attempts"] == 1
    assert not list(run.glob(".*"))
    assert (run / "train.log").read_text().count("step 29: loss") == 1
    rows = [json.loads(line) for line in (run / "eval" / "tuned" / "question_answering.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 2


@pytest.mark.nightly
def test_stopped_or_killed_it_resumes_and_ends_the_same(place, two):
    process = start(place, "paths.outputs=broken")
    run = wait_for(place, "broken", 10)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    step = int(err.partition("checkpoint saved at step ")[2].split()[0])
    assert (run / "checkpoints" / f"checkpoint-{step}" / "rng_state_1.pth").exists()
    assert record_of(run)["status"] == "running"

    process = start(place, "paths.outputs=broken")
    wait_for(place, "broken", min(20, 10 * (step // 10 + 1)))
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.communicate()

    run, _, err = run_two(place, "broken")
    assert "resuming from checkpoint-" in err
    assert record_of(run)["attempts"] == 3
    assert curve_of(run) == curve_of(two[0])
    assert adapter_of(run) == adapter_of(two[0])
    assert scores_of(run) == scores_of(two[0])


def wait_for(place: Workplace, outputs: str, step: int) -> Path:
    """Wait until the checkpoint of a step, or a later one, is being written; returns the run's folder."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in place.folder.glob(f"{outputs}/*/checkpoints/checkpoint-*"):
            if int(path.name.rpartition("-")[2]) >= step:
                return path.parents[1]
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint {step} in {outputs}")


@pytest.mark.nightly
def test_every_weight_in_two_processes(place):
    full = ("lora=none", "trainer.learning_rate=1e-3", "trainer.max_steps=6", "eval.base=false")
    both, one = run_two(place, "two_full", *full)[0], run_one(place, "one_full", *full)
    assert_same_losses(both, one)
    assert record_of(both)["train"]["kind"] == "full"
    assert (both / "model" / "model.safetensors").exists()


@pytest.mark.nightly
def test_two_processes_with_passes_of_their_own_do_what_one_does(place):
    """Two passes per step and process; also if one of them cannot capture it: both then train without."""
    packs = ("trainer.packing=true", "trainer.conversations_per_step=null", "trainer.tokens_per_step=512")
    one = run_one(place, "packs", *packs, "eval.base=false")
    for fail in ("", "1"):
        env = {"module": "tests.with_passes", "PYTHONPATH": str(Path(__file__).parents[2]), "PASSES_FAIL": fail}
        both, _, err = run_two(place, f"passes{fail}", *packs, "eval.base=false", **env)
        assert_same_losses(both, one)
        assert err.count("CUDA graph off: made up") == len(fail)
        assert norms_of(both) == pytest.approx(norms_of(one), rel=1e-3)


def norms_of(run: Path) -> list[float]:
    return [json.loads(line)["grad_norm"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.nightly
def test_an_error_in_the_first_process_is_reported_once(place):
    process = start(place, "data.rows=100000", "paths.outputs=wrong")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("data.base.rows=100000: the base has 1,000") == 1
    assert not (place.folder / "wrong").exists()
