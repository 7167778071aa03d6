"""What happens on the page: questions, answers as they come, stop, retry, edit, conversations."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from tometune.chatting import inert
from tometune.chatting.answering import Step, answers, finish, take
from tometune.chatting.conversation import Turn
from tometune.chatting.engine import End, Settings, Stopped
from tometune.chatting.loading import Loading
from tometune.chatting.session import Session
from tometune.chatting.turns import Turns
from tometune.common.errors import UserError
from tometune.config.chat import ChatConfig

WIDE = 900
"""Pixels from which on the sidebar is open at first."""

REFRESH = 0.1
"""Seconds between two looks at what is new."""


@dataclass
class Chat:
    """What all tabs share."""

    models: list[str]
    loading: Loading
    turns: Turns[Step]
    defaults: ChatConfig
    seed: int

    def status(self) -> str:
        """Return how far loading is, as HTML."""
        models = " and ".join(f"<b>{html.escape(model)}</b>" for model in self.models)
        if self.loading.error is not None:
            said = html.escape(inert.visible(str(self.loading.error)))
            return f"<h1>{models}</h1><p class='tm-wrong' role='alert'>{said}</p>"
        if self.loading.ready:
            return f"<h1>{models}</h1>"
        progress = self.loading.progress()
        bar = f"<progress max='{progress.of}' value='{max(progress.done - 1, 0)}'></progress>"
        return f"<h1>{models}</h1><p role='status'>Loading: {html.escape(progress.said())}</p>{bar}"


def messages(session: Session, side: int) -> list[dict[str, str]]:
    """Return the conversation in front as one chat shows it."""
    shown = []
    for turn in session.current.turns:
        answer = turn.answers[side]
        shown.append({"role": "user", "content": inert.markdown(inert.shortened(turn.question))})
        text = inert.markdown(answer.text) or ("…" if answer.end is None else "*(no text)*")
        shown.append({"role": "assistant", "content": text})
    return shown


def said(session: Session, side: int) -> str:
    """Return what stands below one chat: how fast the last answer was, and what was left out."""
    answers = [turn.answers[side] for turn in session.current.turns[-1:]]
    return f"<div class='tm-said'>{html.escape(answers[0].said()) if answers else ''}</div>"


class Handlers:
    """What happens on the page; every method returns or yields the values of the components named beside it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def load(self, kept: str, width: float) -> list[Any]:
        """A tab was opened: the sidebar, open where there is room, the box, the session and what is shown of it."""
        session = Session.read(kept, self.chat.models, self.chat.defaults.system or "")
        return [gr.Sidebar(open=width >= WIDE), gr.Textbox(interactive=True), session, *self.shown(session)]

    def shown(self, session: Session) -> list[Any]:
        """Return the list, the system message, the chats and what stands below them."""
        listed = any(each is session.current for each in session.conversations)
        picked = gr.Radio(choices=session.titles(), value=session.current.id if listed else None)
        return [picked, session.current.system, *self.chats(session)]

    def chats(self, session: Session) -> list[Any]:
        """Return the chats, and what stands below each."""
        sides = range(len(self.chat.models))
        return [*(messages(session, side) for side in sides), *(said(session, side) for side in sides)]

    def new(self, session: Session, system: str) -> list[Any]:
        """The button for a new conversation."""
        session.begin(system)
        return self.shown(session)

    def open(self, session: Session, identity: str | None) -> list[Any]:
        """A conversation was picked."""
        session.open(identity)
        return self.shown(session)

    def delete(self, session: Session) -> list[Any]:
        """The button that deletes."""
        return [session.delete(), *self.shown(session)]

    def export(self, session: Session) -> str:
        """The button that saves: the conversation in ShareGPT's shape."""
        return json.dumps(session.current.sharegpt(), ensure_ascii=False, indent=2)

    def keep(self, session: Session) -> str:
        """What the browser keeps of the conversation in front."""
        return session.current.to_json() if session.current.turns else ""

    def stop(self, request: gr.Request) -> None:
        """The button that stops, or a tab that was closed."""
        self.chat.turns.cancel(str(request.session_hash))

    def ask(self, request: gr.Request, session: Session, text: str, system: str, *drawn: Any) -> Iterator[list[Any]]:
        """Something was written."""
        if not text.strip():
            yield self._step(session, sending=False, text=text)
            return
        session.current.system = system
        yield from self._answer(session, session.ask(text, drawn_by(*drawn)), drawn_by(*drawn), request)

    def retry(
        self, request: gr.Request, event: gr.RetryData, session: Session, system: str, *drawn: Any
    ) -> Iterator[list[Any]]:
        """An answer is to be given anew, by the next seed."""
        session.current.system = system
        turn = session.again(_place(event.index), drawn_by(*drawn))
        yield from self._answer(session, turn, drawn_by(*drawn), request)

    def edit(
        self, request: gr.Request, event: gr.EditData, session: Session, system: str, *drawn: Any
    ) -> Iterator[list[Any]]:
        """A question was changed."""
        session.current.system = system
        turn = session.edit(_place(event.index), inert.original(str(event.value)), drawn_by(*drawn))
        yield from self._answer(session, turn, drawn_by(*drawn), request)

    def _answer(self, session: Session, turn: Turn, drawn: Settings, request: gr.Request) -> Iterator[list[Any]]:
        """Show the answers as they come; a reader who leaves ends them."""
        yield self._step(session, sending=True, text="")
        chat = self.chat
        settings = replace(drawn, seed=turn.seed)

        asked = {side: session.current.messages(side) for side in range(len(chat.models))}

        def job(stopped: Stopped) -> Iterator[Step]:
            """Begun when it is this question's turn: by then the engines are there."""
            yield from answers(dict(enumerate(chat.loading.engines)), asked, settings, stopped)

        ticket = chat.turns.ask(str(request.session_hash), job)
        problem = waited = ""
        try:
            while not ticket.over:
                try:
                    steps = ticket.news(REFRESH)
                except Exception as error:
                    problem = _problem(error)
                    break
                for step in steps:
                    take(turn, step)
                wait = self._wait(ticket)
                if steps or wait != waited:  # else nothing is new
                    yield self._new(session, {step.side for step in steps}, wait)
                waited = wait
        finally:
            ticket.cancel()
            for answer in turn.answers:
                if answer.end is None:
                    finish(answer, End.stopped)
        yield self._step(session, sending=False, wait=problem)

    def _wait(self, ticket: Any) -> str:
        """Return what an answer waits for."""
        if not self.chat.loading.ready:
            return "waiting for the model to be loaded"
        ahead = self.chat.turns.ahead(ticket)
        return f"waiting: {ahead} question{'s' if ahead > 1 else ''} of others before this one" if ahead else ""

    def _new(self, session: Session, sides: set[int], wait: str) -> list[Any]:
        """Return what `_step` returns, with nothing in the place of what is as it was."""
        every = range(len(self.chat.models))
        shown = [messages(session, side) if side in sides else gr.skip() for side in every]
        waiting = f"<div class='tm-said' role='status'>{html.escape(inert.visible(wait))}</div>"
        below = [waiting if wait else said(session, side) for side in every]
        return [gr.skip(), gr.skip(), *shown, *below]

    def _step(self, session: Session, sending: bool, text: str | None = None, wait: str = "") -> list[Any]:
        """Return the box, the list, the chats and what stands below them."""
        changed = {} if text is None else {"value": text}
        box = gr.Textbox(submit_btn=not sending, stop_btn=sending, **changed)
        picked = gr.Radio(choices=session.titles(), value=session.current.id)
        shown = self.chats(session)
        if wait:
            sides = len(self.chat.models)
            shown[sides:] = [f"<div class='tm-said' role='status'>{html.escape(inert.visible(wait))}</div>"] * sides
        return [box, picked, *shown]


def drawn_by(temperature: float, top_p: float, max_new_tokens: float, seed: float) -> Settings:
    """Return the settings of the sliders."""
    return Settings(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))


def _place(index: Any) -> int:
    """Return the turn that a message of a chat belongs to: every turn is a question and an answer."""
    return int(index[0] if isinstance(index, Sequence) else index) // 2


def _problem(error: Exception) -> str:
    """Return what went wrong, in one line."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
