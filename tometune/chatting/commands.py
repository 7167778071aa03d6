"""Commands of the terminal: lines that begin with a slash."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tometune.chatting.conversation import Conversation
from tometune.chatting.lines import SEVERAL
from tometune.common.errors import did_you_mean

if TYPE_CHECKING:
    from tometune.chatting.terminal import Talk

HELP = {
    "/system TEXT": "a new conversation with this system message; without a text: with none",
    "/new": "a new conversation",
    "/retry": "answer the last question again, by the next seed",
    "/edit TEXT": "ask this in place of the last question",
    "/temperature X": "0 is greedy",
    "/top_p X": "draw from the likeliest tokens with this much probability",
    "/tokens N": "longest answer",
    "/seed N": "seed of the next answers",
    "/save FILE": "write the conversation as ShareGPT JSON (conversation.json without a name)",
    "/quit": "end; so does Ctrl-D",
}
SETTINGS: dict[str, tuple[str, Callable[[str], float], float, float]] = {
    "/temperature": ("temperature", float, 0, 100),
    "/top_p": ("top_p", float, 1e-6, 1),
    "/tokens": ("max_new_tokens", int, 1, 10**9),
    "/seed": ("seed", int, 0, 2**32 - 1),
}
"""Commands that set a number: which, how it is read, least and most."""


def command(talk: "Talk", line: str) -> bool:
    """Carry a command out, or say what is wrong with it; tell whether to go on."""
    name, _, text = line.partition(" ")
    try:
        return _obey(talk, name, text.strip())
    except (ValueError, OSError) as error:
        talk.tell(f"{line}: {error}")
        return True


def _obey(talk: "Talk", name: str, text: str) -> bool:
    """Carry a command out; tell whether to go on."""
    if name == "/quit":
        return False
    if name == "/help":
        for command, what in HELP.items():
            talk.tell(f"{command:16} {what}")
        talk.tell(f"{SEVERAL:16} begins and ends a question of several lines")
    elif name in ("/system", "/new"):
        talk.conversation = Conversation(talk.models, text if name == "/system" else talk.conversation.system)
        talk.tell("a new conversation")
    elif name in ("/retry", "/edit"):
        _again(talk, name, text)
    elif name in SETTINGS:
        field, kind, least, most = SETTINGS[name]
        talk.settings = replace(talk.settings, **{field: kind(_within(kind(text), least, most))})  # type: ignore[arg-type]
    elif name == "/save":
        _save(talk, Path(text or "conversation.json").expanduser())
    else:
        near = did_you_mean(name, [command.partition(" ")[0] for command in HELP]) or "; /help lists them"
        talk.tell(f"{name}: no such command{near}")
    return True


def _again(talk: "Talk", name: str, text: str) -> None:
    """Ask the last question again, or another one in its place."""
    if not talk.conversation.turns or (name == "/edit" and not text):
        talk.tell(f"{name}: there is no question yet" if text or name == "/retry" else "/edit: write the question")
        return
    last = talk.conversation.turns.pop()
    following = last.seed + 1 if talk.settings.temperature else last.seed
    asked = (last.question, following) if name == "/retry" else (text, talk.settings.seed)
    talk.answer(talk.conversation.ask(*asked))


def _save(talk: "Talk", path: Path) -> None:
    """Write the conversation; nothing is written over.

    Raises:
        OSError: the file is there, or cannot be written.
    """
    with path.open("x", encoding="utf-8") as file:
        json.dump(talk.conversation.sharegpt(), file, ensure_ascii=False, indent=2)
    talk.tell(f"saved {path}")


def _within(number: float, least: float, most: float) -> float:
    """Return a number that is between two others.

    Raises:
        ValueError: it is not.
    """
    if not least <= number <= most:
        raise ValueError(f"not from {least:g} to {most:g}")
    return number
