"""The terminal: prompts, answers as they are generated, and commands that begin with a slash."""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tometune.chatting.conversation import Conversation, Engine, Settings, Turn, show_control_characters
from tometune.common.errors import did_you_mean
from tometune.config.root import ChatConfig

HELP = {
    "/system TEXT": "start a new conversation with this system message (none without TEXT)",
    "/new": "start a new conversation",
    "/retry": "answer the last prompt again with the next seed",
    "/edit TEXT": "replace the last prompt",
    "/temperature X": "0 is greedy",
    "/top_p X": "sample from the most likely tokens with this total probability",
    "/tokens N": "longest answer in tokens",
    "/seed N": "seed of the next answers",
    "/save FILE": "write the conversation as ShareGPT JSON (default: conversation.json)",
    "/quit": "end the chat, like Ctrl-D",
}
SETTINGS: dict[str, tuple[str, Callable[[str], float], float, float]] = {
    "/temperature": ("temperature", float, 0, 100),
    "/top_p": ("top_p", float, 1e-6, 1),
    "/tokens": ("max_new_tokens", int, 1, 10**9),
    "/seed": ("seed", int, 0, 2**32 - 1),
}
"""Commands that set a number: field, type, minimum and maximum."""


class Terminal:
    """A conversation in the terminal."""

    def __init__(self, models: list[str], engines: Sequence[Engine], defaults: ChatConfig, seed: int) -> None:
        self.engines = engines
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.settings = Settings(defaults.temperature, defaults.top_p, defaults.max_new_tokens, seed)
        self.conversation = Conversation(models, defaults.system or "")

    def run(self) -> None:
        """Chat until the user ends it."""
        typed = sys.stdin.isatty()
        if typed:
            with contextlib.suppress(ImportError):  # Windows edits lines by itself
                import readline  # noqa: F401 -- lets the arrow keys edit and recall lines
            models = " and ".join(self.conversation.models)
            self._say(f"{models}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat")
        while True:
            try:
                line = input("> " if typed else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                if not typed:
                    return
                print()  # the line is discarded, as in a shell
                continue
            if line.strip() and not self.handle(line):
                return

    def handle(self, line: str) -> bool:
        """Answer a prompt or run a command; return False if it ends the chat."""
        try:
            if line.startswith("/"):
                name, _, text = line.partition(" ")
                return self._command(name, text.strip())
            self._answer(self.conversation.ask(line, self.settings.seed))
        except KeyboardInterrupt:
            self._say("\nstopped")
        except (ValueError, OSError) as error:
            self._say(f"{line}: {error}")
        return True

    def _say(self, text: str) -> None:
        self.console.print(show_control_characters(text), style="dim")

    def _answer(self, turn: Turn) -> None:
        """Print the answers of all models, one after the other."""
        settings = replace(self.settings, seed=turn.seed)
        for side, (engine, answer) in enumerate(zip(self.engines, turn.answers, strict=True)):
            if len(turn.answers) > 1:
                self.console.print(self.conversation.models[side], style="bold")
            printed = 0
            with contextlib.closing(answer.generate(engine, self.conversation.messages(side), settings)) as pieces:
                for _ in pieces:
                    new, printed = answer.text[printed:], len(answer.text)
                    self.console.print(show_control_characters(new), end="")
            self.console.print()
            self._say(answer.summary())

    def _command(self, name: str, text: str) -> bool:
        """Run a command; return False if it ends the chat."""
        turns = self.conversation.turns
        match name:
            case "/quit":
                return False
            case "/help":
                self._say("\n".join(f"{command:16} {meaning}" for command, meaning in HELP.items()))
            case "/system" | "/new":
                system = text if name == "/system" else self.conversation.system
                self.conversation = Conversation(self.conversation.models, system)
                self._say("new conversation")
            case "/retry" | "/edit" if not turns or (name == "/edit" and not text):
                self._say(f"{name}: there is no prompt")
            case "/retry":
                self._answer(self.conversation.retry(len(turns) - 1, self.settings))
            case "/edit":
                self._answer(self.conversation.edit(len(turns) - 1, text, self.settings))
            case "/save":
                path = Path(text or "conversation.json").expanduser()
                with path.open("x", encoding="utf-8") as file:  # never overwrites a file
                    json.dump(self.conversation.sharegpt(), file, ensure_ascii=False, indent=2)
                self._say(f"saved {path}")
            case _ if name in SETTINGS:
                field, kind, least, most = SETTINGS[name]
                if not least <= kind(text) <= most:
                    raise ValueError(f"must be from {least:g} to {most:g}")
                self.settings = replace(self.settings, **{field: kind(text)})  # type: ignore[arg-type]
            case _:
                hint = did_you_mean(name, [command.partition(" ")[0] for command in HELP]) or "; /help lists them"
                self._say(f"{name}: no such command{hint}")
        return True
