"""The terminal: commands, several lines, what is saved, what is printed on a screen and into a pipe."""

import io
import json
import sys

import pytest
from rich.console import Console

from tests.chatting.fake import Words
from tometune.chatting import loading as module
from tometune.chatting.printing import last_block, printing
from tometune.chatting.terminal import Talk, talk
from tometune.common.errors import UserError
from tometune.config.chat import ChatConfig


@pytest.fixture
def typed(monkeypatch, tmp_path, capsys):
    """Return a function that types lines and returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*lines, models=("tuned",), load=None):
        engines = [Words(f"{model} says ") for model in models]
        monkeypatch.setattr(module, "load_engines", load or (lambda *_: engines))
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        talk(list(models), module.Loading([], tmp_path, 1000), ChatConfig(), 0, tmp_path)
        return capsys.readouterr().out

    return run


def test_questions_answers_and_how_fast_they_were(typed):
    out = typed("hello there", "", "and you?")
    assert out.splitlines()[0] == "tuned says hello there"
    assert "5 tokens · " in out.splitlines()[1]
    assert "tuned says and you?" in out


def test_two_models_are_told_apart(typed):
    lines = typed("hello", models=("base", "tuned")).splitlines()
    assert lines[:2] == ["base", "base says hello"]
    assert lines[3:5] == ["tuned", "tuned says hello"]


def test_what_is_saved_is_the_conversation(typed, tmp_path):
    out = typed(
        "/system be kind", "one", "/retry", "two", "/edit three", "/save", "/save", "/save none/x.json", "/quit", "four"
    )
    (row,) = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == [
        "be kind",
        *("one", "tuned says one"),
        *("three", "tuned says three"),
    ]
    assert "saved conversation.json" in out
    assert "/save: [Errno 17] File exists" in out
    assert "No such file" in out
    assert "four" not in out


def test_several_lines_are_one_question(typed):
    out = typed('"""first', "second", 'third"""')
    assert out.startswith("tuned says first\nsecond\nthird\n")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/quti", "/quti: no such command; did you mean /quit?"),
        ("/what", "/what: no such command; /help lists them"),
        ("/temperature x", "/temperature x: could not convert"),
        ("/temperature nan", "/temperature nan: not from 0 to 100"),
        ("/top_p 2", "/top_p 2: not from 1e-06 to 1"),
        ("/tokens 0", "/tokens 0: not from 1"),
        ("/retry", "/retry: there is no question yet"),
        ("/edit", "/edit: write the question"),
        ("/help", "/save FILE"),
    ],
)
def test_wrong_commands_are_told(typed, line, says):
    assert says in typed(line)


def test_settings_are_those_of_the_next_answers(tmp_path):
    talking = Talk(["tuned"], None, ChatConfig(), 0, Console(file=io.StringIO()))
    for line in ("/temperature 0", "/top_p 0.5", "/tokens 7", "/seed 9"):
        assert talking.take(line)
    settings = talking.settings
    assert (settings.temperature, settings.top_p, settings.max_new_tokens, settings.seed) == (0, 0.5, 7, 9)


def test_a_model_that_cannot_be_loaded_is_the_error_of_the_command(typed):
    def load(*_):
        raise UserError("model.id=a/b: no such repository")

    with pytest.raises(UserError, match="no such repository"):
        typed("hello", load=load)


class Failing(Words):
    """Has no memory for questions that say so, and is told to stop by those that say that."""

    def stream(self, messages, settings, stopped):
        asked = messages[-1]["content"]
        if "large" in asked:
            raise MemoryError("no [b]memory[/b]")
        yield from super().stream(messages, settings, stopped)


def test_whatever_an_engine_raises_the_conversation_goes_on(typed, tmp_path):
    out = typed("one", "a large one", "/retry", "two", "/save", load=lambda *_: [Failing("says ")])
    assert out.count("MemoryError: no [b]memory[/b]") == 2
    assert "says two" in out
    (row,) = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == ["one", "says one", "two", "says two"]


@pytest.mark.parametrize("place", ["_follow", "tell"])
def test_ctrl_c_wherever_it_comes_stops_an_answer_only(typed, monkeypatch, place):
    once, plain = [], getattr(Talk, place)

    def interrupted(*given):
        if not once:
            once.append(1)
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(Talk, place, interrupted)
    out = typed("one", "two")
    assert "stopped" in out
    assert "tuned says two" in out


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("one", 0),
        ("one\n\ntwo", 5),
        ("one\n\n```\ncode\n\nmore", 5),
        ("```\ncode\n\nmore\n```\n\nafter", 20),
    ],
)
def test_the_last_block_is_not_printed_before_it_is_whole(text, begins):
    assert last_block(text) == begins


def screen():
    return Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None, legacy_windows=False)


def test_a_screen_shows_markdown_and_obeys_no_escape_of_the_model():
    console = screen()
    text = "# Title\n\nsome **bold** <b>text</b> \x1b]0;owned\x07\n\n```python\nprint('<i>')\n```\n\n[a](http://x.y)"
    with printing(console) as show:
        for end in range(0, len(text), 5):
            show(text[:end], False)
        show(text, True)
    out = console.file.getvalue()
    assert "\x1b]0" not in out
    assert "\x07" not in out
    assert "␛]0;owned␇" in out
    last = out.rpartition("\x1b[2K")[2]
    assert "**" not in last
    assert "http://x.y" in out
