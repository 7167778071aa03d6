"""The terminal: commands, saving, errors, and Ctrl-C."""

import io
import json
import subprocess
import sys
from unittest import mock

import pytest

from tests.chatting.conftest import Words, write_run
from tometune.chatting.terminal import Terminal
from tometune.config.root import ChatConfig


@pytest.fixture
def typed(monkeypatch, tmp_path, capsys):
    """Return a function that types lines and returns the output and what `/save` wrote, if anything."""
    monkeypatch.chdir(tmp_path)

    def chat(*lines, models=("tuned",), engine=Words):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        Terminal(list(models), [engine(f"{model} says ") for model in models], ChatConfig(), 0).run()
        saved = tmp_path / "conversation.json"
        row = json.loads(saved.read_text())[0] if saved.exists() else {"conversations": []}
        return capsys.readouterr().out, [turn["value"] for turn in row["conversations"]]

    return chat


@pytest.mark.whole
def test_a_run_through_a_pipe(tmp_path, base, store, clean_env):
    write_run(tmp_path / "outputs" / "some", base)
    command = [sys.executable, "-m", "tometune.chat", "run=some", "ui=terminal", f"paths.cache={store}"]
    lines = "/tokens 9\nWhat is it?\n/save saved.json\n"
    done = subprocess.run(command, cwd=tmp_path, env=clean_env, input=lines, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "loading some\n")
    assert "tokens/s" in done.stdout
    (row,) = json.loads((tmp_path / "saved.json").read_text())
    assert row["model"] == "some"
    assert row["conversations"][0] == {"from": "human", "value": "What is it?"}


def test_two_models_answer_one_after_the_other(typed):
    out, _ = typed("hello", "", "\x1b]0;owned\x07", models=("base", "tuned"))
    lines = out.splitlines()
    assert lines[:2] == ["base", "base says hello"]
    assert "4 tokens · " in lines[2]
    assert lines[3:5] == ["tuned", "tuned says hello"]
    assert "tuned says ␛]0;owned␇" in out
    assert "\x1b" not in out


def test_the_conversation_is_saved(typed):
    lines = ["/system be kind", "one", "/retry", "two", "/edit three", "/save", "/save", "/save none/x.json", "/quit"]
    out, saved = typed(*lines, "four")
    assert saved == ["be kind", "one", "tuned says one", "three", "tuned says three"]
    assert "saved conversation.json" in out
    assert "/save: [Errno 17] File exists" in out
    assert "No such file" in out
    assert "four" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/quti", "/quti: no such command; did you mean /quit?"),
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
    assert message in typed(line)[0]


def test_settings_hold_for_the_next_answers():
    terminal = Terminal(["tuned"], [], ChatConfig(), 0)
    for line in ("/temperature 0", "/top_p 0.5", "/tokens 7", "/seed 9"):
        assert terminal.handle(line)
    settings = terminal.settings
    assert (settings.temperature, settings.top_p, settings.max_new_tokens, settings.seed) == (0, 0.5, 7, 9)


class Unreliable(Words):
    """Runs out of memory in prompts that say "large", and receives Ctrl-C in those that say "stop"."""

    def stream(self, messages, settings):
        prompt = messages[-1]["content"]
        for piece in super().stream(messages, settings):
            yield piece
            if "stop" in prompt:
                raise KeyboardInterrupt
            if "large" in prompt:
                raise MemoryError("no [b]memory[/b]")


def test_the_conversation_goes_on_after_errors_and_ctrl_c(typed):
    out, saved = typed("one", "a large one", "/retry", "/edit two", "stop here", "three", "/save", engine=Unreliable)
    assert out.count(" · stopped · MemoryError: no [b]memory[/b]") == 2
    assert "\nstopped" in out
    assert saved[:4] == ["one", "tuned says one", "two", "tuned says two"]
    assert saved[4:] == ["stop here", "tuned", "three", "tuned says three"]


def test_ctrl_c_at_the_prompt_only_discards_the_line(monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", mock.Mock(side_effect=[KeyboardInterrupt, "one", EOFError]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    Terminal(["tuned"], [Words("says ")], ChatConfig(), 0).run()
    assert "says one" in capsys.readouterr().out
