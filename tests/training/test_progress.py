"""The bar on a real terminal: log lines stand above it, whole."""

import os
import pty
import re
import subprocess
import sys

CODE = """
import logging, time
from types import SimpleNamespace
from tometune.common.logs import StderrHandler
from tometune.training.progress import progress_callbacks
logging.basicConfig(level=logging.INFO, handlers=[StderrHandler()], format="%(message)s")
(bar,) = progress_callbacks()
state = SimpleNamespace(max_steps=3, global_step=0)
bar.on_train_begin(None, state, None)
for state.global_step in (1, 2, 3):
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 1.5})
    logging.info("line %d", state.global_step)
    time.sleep(0.3)
bar.on_train_end(None, state, None)
"""


def test_log_lines_stand_above_the_bar():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # Linux says so where the other end is closed
        pass
    assert process.communicate()[0] == b""  # nothing on stdout
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", uncoloured)
    lines = [part.strip() for part in re.split(r"[\r\n]+", text)]
    assert [line for line in lines if line.startswith("line")] == ["line 1", "line 2", "line 3"]
    assert any(line.startswith("training") and "3/3" in line and "loss 1.500" in line for line in lines)


def test_no_bar_without_a_terminal():
    code = "from tometune.training.progress import progress_callbacks as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
