"""The terminal: questions with a history of lines, answers as they come, commands that begin with a slash."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tometune.chatting.answering import Step, answers, finish, take
from tometune.chatting.conversation import Conversation, Turn
from tometune.chatting.engine import End, Settings, Stopped
from tometune.chatting.inert import visible
from tometune.chatting.loading import Loading
from tometune.chatting.printing import printing
from tometune.chatting.turns import Turns
from tometune.config.chat import ChatConfig
from tometune.config.errors import UserError, did_you_mean

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

SEVERAL = '"""'
"""Begins and ends a question of several lines."""


class Talk:
    """A conversation in the terminal."""

    def __init__(self, models: list[str], loading: Loading, defaults: ChatConfig, seed: int, console: Console) -> None:
        self.models = models
        self.loading = loading
        self.console = console
        self.turns: Turns[Step] = Turns()
        self.settings = Settings(defaults.temperature, defaults.top_p, defaults.max_new_tokens, seed)
        self.conversation = Conversation(models, defaults.system or "")

    def load(self) -> None:
        """Wait until the models are there, and show what is being done.

        Raises:
            UserError: they cannot be loaded.
        """
        self.loading.start(then=self.turns.start)
        with self.console.status("loading") as status:
            while not self.loading.wait(0.2):
                status.update(escape(self.loading.progress().said()))
        if self.loading.error is not None:
            raise self.loading.error

    def take(self, line: str) -> bool:
        """Carry a line out; tell whether to go on."""
        if not line.startswith("/"):
            self.answer(self.conversation.ask(line, self.settings.seed))
            return True
        name, _, text = line.partition(" ")
        try:
            return self._command(name, text.strip())
        except (ValueError, OSError) as error:
            self.tell(f"{line}: {error}")
            return True

    def _command(self, name: str, text: str) -> bool:
        """Carry a command out; tell whether to go on."""
        if name == "/quit":
            return False
        if name == "/help":
            for command, what in HELP.items():
                self.tell(f"{command:16} {what}")
            self.tell(f"{SEVERAL:16} begins and ends a question of several lines")
        elif name in ("/system", "/new"):
            self.conversation = Conversation(self.models, text if name == "/system" else self.conversation.system)
            self.tell("a new conversation")
        elif name in ("/retry", "/edit"):
            self._again(name, text)
        elif name in SETTINGS:
            field, kind, least, most = SETTINGS[name]
            self.settings = replace(self.settings, **{field: kind(_within(kind(text), least, most))})  # type: ignore[arg-type]
        elif name == "/save":
            self._save(Path(text or "conversation.json").expanduser())
        else:
            near = did_you_mean(name, [command.partition(" ")[0] for command in HELP]) or "; /help lists them"
            self.tell(f"{name}: no such command{near}")
        return True

    def _again(self, name: str, text: str) -> None:
        """Ask the last question again, or another one in its place."""
        if not self.conversation.turns or (name == "/edit" and not text):
            self.tell(f"{name}: there is no question yet" if text or name == "/retry" else "/edit: write the question")
            return
        last = self.conversation.turns.pop()
        following = last.seed + 1 if self.settings.temperature else last.seed
        asked = (last.question, following) if name == "/retry" else (text, self.settings.seed)
        self.answer(self.conversation.ask(*asked))

    def _save(self, path: Path) -> None:
        """Write the conversation; nothing is written over.

        Raises:
            OSError: the file is there, or cannot be written.
        """
        with path.open("x", encoding="utf-8") as file:
            json.dump(self.conversation.sharegpt(), file, ensure_ascii=False, indent=2)
        self.tell(f"saved {path}")

    def answer(self, turn: Turn) -> None:
        """Show each model's answer as it comes; Ctrl-C stops it."""
        settings = replace(self.settings, seed=turn.seed)
        for side, engine in enumerate(self.loading.engines):
            asked = {side: self.conversation.messages(side)}

            def job(stopped: Stopped, engine=engine, side=side, asked=asked) -> Iterator[Step]:  # type: ignore[no-untyped-def]
                yield from answers({side: engine}, asked, settings, stopped)

            if len(self.models) > 1:
                self.console.print(self.models[side], style="bold", markup=False, highlight=False)
            ticket = self.turns.ask("terminal", job)
            answer = turn.answers[side]
            try:
                with printing(self.console) as show:
                    while not ticket.over:
                        try:
                            for step in ticket.news(0.1):
                                take(turn, step)
                        except KeyboardInterrupt:
                            ticket.cancel()
                        show(answer.text, answer.end is not None)
            except UserError as error:
                self.tell(str(error))
            if answer.end is None:
                finish(answer, End.stopped)
            self.tell(answer.said())

    def tell(self, text: str) -> None:
        """Print what is not the model's."""
        self.console.print(visible(text), style="dim", markup=False, highlight=False, soft_wrap=True)


def _within(number: float, least: float, most: float) -> float:
    """Return a number that is between two others.

    Raises:
        ValueError: it is not.
    """
    if not least <= number <= most:
        raise ValueError(f"not from {least:g} to {most:g}")
    return number


def talk(models: list[str], loading: Loading, defaults: ChatConfig, seed: int, cache: Path) -> None:
    """Talk until the user ends it.

    Args:
        models: their names.
        loading: not begun yet.
        defaults: the `chat` group.
        seed: `seeds.generation`.
        cache: where the history of lines is kept.

    Raises:
        UserError: the models cannot be loaded.
    """
    console = Console(highlight=False)
    talking = Talk(models, loading, defaults, seed, console)
    talking.load()
    person = sys.stdin.isatty()
    if person:
        talking.tell(f"{' and '.join(models)}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends")
    try:
        with _history(cache / "chat_history") if person else contextlib.nullcontext():
            for line in _lines("> " if person else ""):
                if not talking.take(line):
                    break
    finally:
        talking.turns.close()


def _lines(prompt: str) -> Iterator[str]:
    """Yield what is typed or piped in: lines, or several between triple quotes; ends with Ctrl-D and Ctrl-C."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            line = input(prompt)
            if line.startswith(SEVERAL):
                rest = [line.removeprefix(SEVERAL)]
                while not rest[-1].rstrip().endswith(SEVERAL):
                    rest.append(input("… " if prompt else ""))
                line = "\n".join(rest).rstrip().removesuffix(SEVERAL)
            if line.strip():
                yield line


@contextlib.contextmanager
def _history(file: Path) -> Iterator[None]:
    """Let the arrow keys bring back earlier lines, of earlier times too; only the user may read the file."""
    try:
        import readline
    except ImportError:  # Windows has its own
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.write_history_file(file)
