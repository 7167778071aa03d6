"""A stop signal at any moment: one line, the exit status of the signal, and repeating the command resumes."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.whole import Workplace, record_of
from tometune.common.signals import Stopped, stop_signals

RESUME = "run the same command again to resume"
MODEL = ("model=tiny", "eval=pydocs", "eval.limit=24", "tracking=none")
SMOKE = ("+experiment=smoke", "trainer.max_steps=2", "eval.base=false")


def stopped(place: Workplace, verb: str, *overrides: str, once: str, number: signal.Signals) -> tuple[int, str]:
    """Start a verb, send it a signal once a file is there, and return its exit status and stderr."""
    command = [sys.executable, "-m", f"tometune.{verb}", *overrides]
    process = subprocess.Popen(
        command, env=place.env, cwd=place.folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 120
    while not list(place.folder.glob(once)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_data_is_prepared(place: Workplace, number: signal.Signals) -> None:
    cache = f"cache-{number.name}"
    command = ("data=pydocs_3k", "model=tiny", f"paths.cache={cache}")
    status, err = stopped(place, "prepare", *command, once=f"{cache}/*/.*", number=number)
    assert status == 128 + number
    name = "interrupted" if number is signal.SIGINT else f"stopped by {number.name}"
    assert err.splitlines()[-1] == f"{name}; {RESUME}"
    assert "Traceback" not in err
    assert not list(place.folder.glob(f"{cache}/*/.*")), "nothing half-built is left"
    if number is signal.SIGTERM:
        done = place.verb("prepare", *command)
        assert done.returncode == 0, done.stderr


@pytest.mark.whole
@pytest.mark.nightly
def test_while_a_model_is_evaluated(place: Workplace) -> None:
    scored = "outputs/*/eval/base/*.json"
    status, err = stopped(place, "evaluate", *MODEL, once=scored, number=signal.SIGTERM)
    assert status == 143
    assert err.splitlines()[-1] == f"stopped by SIGTERM; {RESUME}"
    assert "Traceback" not in err
    kept = len(list(place.folder.glob(scored)))
    assert kept
    assert not list(place.folder.glob("outputs/*/evaluation.json"))
    done = place.verb("evaluate", *MODEL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(reused)") == kept


MOMENTS = [
    ("tometune.data.tokens:tokenise", 1, "SIGTERM"),
    ("tometune.training.trainer:MeteredTrainer.training_step", 1, "SIGHUP"),
    ("tometune.evaluation.scoring:write_result", 3, "SIGTERM"),
]


@pytest.mark.whole
def test_a_run_that_is_stopped_again_and_again_completes(place: Workplace) -> None:
    for moment in MOMENTS:
        status, stderr = place.train(*SMOKE, "paths.outputs=runs", moment=moment)
        assert status == 128 + signal.Signals[moment[2]]
        assert stderr.splitlines()[-1] == f"stopped by {moment[2]}; {RESUME}"
        assert "Traceback" not in stderr
        assert all(record_of(run)["status"] == "running" for run in (place.folder / "runs").glob("*"))
    status, stderr = place.train(*SMOKE, "paths.outputs=runs")
    assert status == 0, stderr
    assert record_of(place.run_folder("runs"))["status"] == "completed"


def test_it_can_be_pickled_in_a_launchers_worker() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM)))
    assert (stopped.signal, stopped.code) == (signal.SIGTERM, 143)


def send_myself(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(1)


def test_ignored_signals_stay_ignored_and_handlers_are_restored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Stopped, match="15"), stop_signals():
            send_myself(signal.SIGHUP, signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_changes_no_exit_status(tmp_path: Path) -> None:
    """Writing to it fails, as to a full device."""
    if not Path("/dev/full").exists():
        pytest.skip("is Linux's device that is always full")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from tometune.config.app import verb\n"
        "verb(lambda config: os.kill(os.getpid(), signal.SIGHUP))()\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, stderr=full)
    assert done.returncode == 129
