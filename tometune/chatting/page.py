"""The page: one or two chats side by side, a prompt box, and a sidebar with the settings."""

import html
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from tometune.chatting.conversation import Conversation, Turn
from tometune.chatting.engine import End, Engine, Settings
from tometune.chatting.inert import markdown, original, visible
from tometune.config.root import ChatConfig

REFRESH = 0.1  # seconds between two updates of an answer
LONGEST_SHOWN = 20_000  # characters of a prompt

DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'conversation.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
"""Saves a text as a file from the browser, without a file on the server."""

CSS = """
.tm-summary { font-size: .8rem; color: var(--body-text-color-subdued); min-height: 1.2rem; }
@media (max-width: 767px) {
  .row:has(> .tm-side) { flex-wrap: wrap; }
  .tm-side { flex: 1 1 100% !important; min-width: 0 !important; }
  .tm-side:not(:only-child) .tm-chat { height: calc(50dvh - 125px) !important; min-height: 150px; }
}
"""

CHATBOT: dict[str, Any] = {
    "height": "calc(100dvh - 150px)",
    "editable": "user",
    "buttons": ["copy"],
    "allow_tags": False,
    "sanitize_html": True,
    "latex_delimiters": [],  # KaTeX would get the text between them unescaped
    "feedback_options": None,
    "elem_classes": "tm-chat",
}
"""Settings with which a chat's messages cannot become live HTML (see also `inert`)."""


@dataclass
class ChatPage:
    """The page and its event handlers. Each tab has a `Conversation` of its own; models and queue are shared."""

    models: list[str]
    engines: Sequence[Engine]
    defaults: ChatConfig
    seed: int

    def build(self) -> gr.Blocks:
        """Return the page."""
        defaults = self.defaults
        with gr.Blocks(title="tometune chat", analytics_enabled=False, fill_width=True) as page:
            conversation = gr.State(Conversation(self.models, defaults.system or ""))
            width, download = gr.Number(visible=False), gr.Textbox(visible=False)
            with gr.Sidebar(width=290, open=False) as sidebar:
                new = gr.Button("New conversation", variant="primary", size="sm")
                export = gr.Button("Save as JSON", size="sm")
                system = gr.Textbox(defaults.system or "", label="System prompt", lines=2, max_lines=6)
                sampling = [
                    gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature"),
                    gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top-p"),
                    gr.Slider(1, 8192, defaults.max_new_tokens, step=1, label="Max new tokens"),
                    gr.Number(self.seed, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
                ]
            chats, summaries = [], []
            with gr.Row():
                for model in self.models:
                    with gr.Column(min_width=300, elem_classes="tm-side"):
                        chats.append(gr.Chatbot(label=model, **CHATBOT))
                        summaries.append(gr.HTML(padding=False))
            box = gr.Textbox(
                placeholder="Ask something (Enter sends, Shift+Enter starts a new line)",
                show_label=False,
                container=False,
                submit_btn=True,
                max_lines=8,
                autofocus=True,
                elem_id="box",
            )

            view = [box, *chats, *summaries]
            quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
            queued: Any = {  # all answers share one queue: the models answer one prompt at a time
                "concurrency_id": "answers",
                "concurrency_limit": 1,
                "show_progress": "minimal",
                "show_progress_on": chats,
                "api_visibility": "private",
            }
            answers = [box.submit(self._ask, [conversation, box, system, *sampling], view, **queued)]
            for chat in chats:
                for event, handler in ((chat.retry, self._retry), (chat.edit, self._edit)):
                    answers.append(event(handler, [conversation, system, *sampling], view, **queued))
                chat.undo(self._undo, [conversation], view, **quiet)
            for answer in answers:  # also after an answer was stopped
                answer.then(self._finish, [conversation], view, **quiet)
            box.stop(None, None, None, cancels=answers, **quiet)
            clear = [new.click, *(chat.clear for chat in chats)]
            gr.on(clear, self._new, [system], [conversation, *view], cancels=answers, **quiet)
            exported = export.click(lambda chat: json.dumps(chat.sharegpt()), [conversation], [download], **quiet)
            exported.then(None, [download], None, js=DOWNLOAD, **quiet)
            open_if_wide = {"js": "() => window.innerWidth", **quiet}
            page.load(lambda width: gr.Sidebar(open=width >= 900), [width], [sidebar], **open_if_wide)
        return page

    def _ask(self, conversation: Conversation, prompt: str, system: str, *sampling: float) -> Iterator[list[Any]]:
        settings = _settings(*sampling)
        if prompt.strip():
            yield from self._answer(conversation, conversation.ask(prompt, settings.seed), system, settings)
        else:
            yield [gr.skip(), *self._view(conversation)]

    def _retry(
        self, event: gr.RetryData, conversation: Conversation, system: str, *sampling: float
    ) -> Iterator[list[Any]]:
        settings = _settings(*sampling)
        yield from self._answer(conversation, conversation.retry(_turn(event), settings), system, settings)

    def _edit(
        self, event: gr.EditData, conversation: Conversation, system: str, *sampling: float
    ) -> Iterator[list[Any]]:
        settings = _settings(*sampling)
        turn = conversation.edit(_turn(event), original(str(event.value)), settings)
        yield from self._answer(conversation, turn, system, settings)

    def _undo(self, event: gr.UndoData, conversation: Conversation) -> list[Any]:
        """Remove a turn and put its prompt back into the box."""
        prompt = conversation.turns[_turn(event)].prompt
        del conversation.turns[_turn(event) :]
        return [prompt, *self._view(conversation)]

    def _finish(self, conversation: Conversation) -> list[Any]:
        return [gr.Textbox(submit_btn=True, stop_btn=False), *self._view(conversation)]

    def _new(self, system: str) -> list[Any]:
        conversation = Conversation(self.models, system)
        return [conversation, *self._finish(conversation)]

    def _answer(self, conversation: Conversation, turn: Turn, system: str, settings: Settings) -> Iterator[list[Any]]:
        """Show the answers of all models, one after the other. Gradio closes the iterator to stop them."""
        conversation.system = system
        settings = replace(settings, seed=turn.seed)
        yield [gr.Textbox("", submit_btn=False, stop_btn=True), *self._view(conversation)]
        try:
            for side, (engine, answer) in enumerate(zip(self.engines, turn.answers, strict=True)):
                updated = time.monotonic()
                with closing(answer.generate(engine, conversation.messages(side), settings)) as pieces:
                    for _ in pieces:
                        if time.monotonic() - updated >= REFRESH:
                            yield [gr.skip(), *self._view(conversation, side)]
                            updated = time.monotonic()
        finally:
            for answer in turn.answers:
                answer.end = answer.end or str(End.stopped)
        yield [gr.skip(), *self._view(conversation)]

    def _view(self, conversation: Conversation, only: int | None = None) -> list[Any]:
        """Return the messages and the summary of each side; of the side `only` if the others have not changed."""
        sides = range(len(self.models))
        messages = [_messages(conversation, side) if only in (None, side) else gr.skip() for side in sides]
        last = conversation.turns[-1].answers if conversation.turns else []
        summaries = [html.escape(visible(answer.summary())) for answer in last] or [""] * len(self.models)
        return [*messages, *(f"<div class='tm-summary' role='status'>{text}</div>" for text in summaries)]


def _messages(conversation: Conversation, side: int) -> list[dict[str, str]]:
    """Return the messages of one model as Gradio expects them, with inert texts."""
    messages = []
    for turn in conversation.turns:
        hidden = len(turn.prompt) - LONGEST_SHOWN
        more = f"\n\n… {hidden:,} more characters are not shown" if hidden > 0 else ""
        messages.append({"role": "user", "content": markdown(turn.prompt[:LONGEST_SHOWN] + more)})
        answer = turn.answers[side]
        shown = markdown(answer.text) or ("…" if answer.end is None else "*(no text)*")
        messages.append({"role": "assistant", "content": shown})
    return messages


def _settings(temperature: float, top_p: float, max_new_tokens: float, seed: float) -> Settings:
    return Settings(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))


def _turn(event: Any) -> int:
    """Return the number of the turn that a message of a chat belongs to; a turn has two messages."""
    index = event.index
    return int(index[0] if isinstance(index, Sequence) else index) // 2
