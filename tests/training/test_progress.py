"""The progress bar on a real terminal: log lines appear above it, complete."""

import logging
import os
import pty
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

from tometune.common.progress import StderrHandler
from tometune.training.metrics import Meter
from tometune.training.trainer import StepCallback


def test_log_lines_appear_above_the_bar(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        log = logging.Logger("bar")
        log.addHandler(StderrHandler())
        bar, state, control = StepCallback(Meter()), SimpleNamespace(max_steps=2, global_step=0), SimpleNamespace()
        bar.on_train_begin(None, state, control)
        shown = ""
        for state.global_step in (1, 2):
            bar.on_step_end(SimpleNamespace(eval_steps=None), state, control)
            bar.on_log(None, state, control, logs={"loss": 1.5})
            log.info("line %d", state.global_step)
            time.sleep(0.3)
            shown += os.read(ours, 4096).decode()
        bar.on_train_end(None, state, control)
        monkeypatch.undo()
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    lines = [part.strip() for part in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", uncoloured))]
    assert [line for line in lines if line.startswith("line")] == ["line 1", "line 2"]
    assert any(line.startswith("training") and "2/2" in line and "loss 1.500" in line for line in lines)
    assert control.should_log


def test_there_is_no_bar_without_a_terminal(capfd):
    bar, state = StepCallback(Meter()), SimpleNamespace(max_steps=3, global_step=1)
    control: Any = SimpleNamespace()
    for event in (bar.on_train_begin, bar.on_step_end, bar.on_train_end):
        event(SimpleNamespace(eval_steps=None), state, control)
    assert capfd.readouterr() == ("", "")
    assert not vars(control), "neither the last step nor a signal"
