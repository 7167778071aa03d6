"""A stop signal while data is prepared or a model evaluated; what handles signals. Runs are in training/test_resume."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tometune.common.process import Stopped, stop_signals

RESUME = "run the same command again to resume"


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_data_is_prepared(place, number):
    cache = f"cache-{number.name}"
    command = ("data=pydocs_3k", "model=tiny", f"paths.cache={cache}")
    done = place.verb("prepare", *command, moment=("tometune.data.standardise:_build", 1, number.name))
    assert done.returncode == 128 + number
    name = "interrupted" if number is signal.SIGINT else f"stopped by {number.name}"
    assert done.stderr.splitlines()[-1] == f"{name}; {RESUME}"
    assert "Traceback" not in done.stderr
    assert not list(place.folder.glob(f"{cache}/*/.*")), "nothing half-built is left"


@pytest.mark.whole
def test_while_a_model_is_evaluated(place):
    command = ("evaluate", "model=tiny", "eval=pydocs", "eval.limit=1", "tracking=none")
    done = place.verb(*command, moment=("tometune.evaluation.scoring:write_result", 3, "SIGTERM"))
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1] == f"stopped by SIGTERM; {RESUME}"
    assert not list(place.folder.glob("outputs/*/evaluation.json"))
    done = place.verb(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(reused)") == 2


def test_it_can_be_pickled_in_a_launchers_worker():
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM)))
    assert (stopped.signal, stopped.code) == (signal.SIGTERM, 143)


def send_myself(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(1)


def test_ignored_signals_stay_ignored_and_handlers_are_restored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Stopped, match="15"), stop_signals():
            send_myself(signal.SIGHUP, signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="is Linux's device that is always full")
def test_a_terminal_that_is_gone_changes_no_exit_status(tmp_path):
    """Writing to it fails, as to a full device."""
    code = (
        "import os, signal\n"
        "from tometune.config.app import verb\n"
        "verb(lambda config: os.kill(os.getpid(), signal.SIGHUP))()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, stderr=full)
    assert done.returncode == 129
