"""The terminal: questions, answers as they come, and whatever goes wrong is told and the conversation goes on."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tometune.chatting.answering import Step, answers, finish, take
from tometune.chatting.commands import command
from tometune.chatting.conversation import Conversation, Turn
from tometune.chatting.engine import End, Settings, Stopped
from tometune.chatting.inert import visible
from tometune.chatting.lines import lines
from tometune.chatting.loading import Loading
from tometune.chatting.printing import printing
from tometune.chatting.turns import Ticket, Turns
from tometune.common.errors import UserError
from tometune.config.chat import ChatConfig

USER = "terminal"
"""Whose questions these are."""


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
        """Carry a line out; tell whether to go on. Whatever goes wrong is told, and the conversation is kept."""
        try:
            if line.startswith("/"):
                return command(self, line)
            self.answer(self.conversation.ask(line, self.settings.seed))
        except KeyboardInterrupt:
            self.turns.cancel(USER)
            self.tell("stopped")
        except Exception as error:  # an engine's, e.g. no memory: the next question may be a shorter one
            self.tell(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        return True

    def answer(self, turn: Turn) -> None:
        """Show each model's answer as it comes; Ctrl-C stops it."""
        settings = replace(self.settings, seed=turn.seed)
        for side, engine in enumerate(self.loading.engines):
            asked = {side: self.conversation.messages(side)}

            def job(stopped: Stopped, engine=engine, side=side, asked=asked) -> Iterator[Step]:  # type: ignore[no-untyped-def]
                yield from answers({side: engine}, asked, settings, stopped)

            if len(self.models) > 1:
                self.console.print(self.models[side], style="bold", markup=False, highlight=False)
            ticket = self.turns.ask(USER, job)
            answer = turn.answers[side]
            try:
                with printing(self.console) as show:
                    self._follow(ticket, turn, side, show)
            finally:
                ticket.cancel()
                if answer.end is None:
                    finish(answer, End.stopped)
            self.tell(answer.said())

    def _follow(self, ticket: Ticket[Step], turn: Turn, side: int, show: Callable[[str, bool], None]) -> None:
        """Show what is new until there is nothing more; Ctrl-C ends the answer."""
        answer = turn.answers[side]
        while not ticket.over:
            try:
                for step in ticket.news(0.1):
                    take(turn, step)
                show(answer.text, answer.end is not None)
            except KeyboardInterrupt:
                ticket.cancel()
        show(answer.text, answer.end is not None)

    def tell(self, text: str) -> None:
        """Print what is not the model's."""
        self.console.print(visible(text), style="dim", markup=False, highlight=False, soft_wrap=True)


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
    if sys.stdin.isatty():
        talking.tell(f"{' and '.join(models)}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends")
    try:
        for line in lines(cache / "chat_history"):
            if not talking.take(line):
                break
    finally:
        talking.turns.close()
