"""The page: one or two chats side by side, a prompt box, and a sidebar with saved conversations and settings."""

import html
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import gradio as gr

from tometune.chatting.conversation import Answer, Conversation, Turn
from tometune.chatting.engine import End, Loading, Settings
from tometune.chatting.inert import markdown, original, visible
from tometune.config.chat import ChatConfig

REFRESH = 0.1
"""Seconds between two updates of an answer."""

SAVED = 50
"""Conversations that the browser keeps per pair of models."""

LONGEST_SHOWN = 20_000
"""Characters of a message that the page shows."""

Stored = list[dict[str, Any]]

DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'conversation.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
"""Saves a text as a file from the browser, without a file on the server."""

CSS = """
.main.fillable { padding: 12px 16px; }
.sidebar-parent .column { gap: 10px; }
.block.tm-title { padding: 0 0 0 2rem; min-height: 26px; margin: 0 !important; width: 100% !important; }
.tm-title h1 { font-size: 1.05rem; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.tm-title p { margin: .15rem 0; font-size: .85rem; color: var(--body-text-color-subdued); }
.tm-title .tm-error { color: #b91c1c; font-weight: 600; }
.dark .tm-title .tm-error { color: #fca5a5; }
.tm-summary { font-size: .8rem; color: var(--body-text-color-subdued); min-height: 1.2rem; padding: 0 .25rem; }
.tm-side { min-width: 0 !important; gap: 4px !important; }
.tm-list label { width: 100%; }
.tm-list label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
@media (max-width: 767px) {
  .row:has(> .tm-side) { flex-wrap: wrap; gap: 6px; }
  .tm-side { flex: 1 1 100% !important; }
  .tm-side:not(:only-child) .tm-chat { height: calc(50dvh - 125px) !important; min-height: 150px; }
}
"""


class ChatPage:
    """The page and its event handlers. Each tab has its own `Conversation`; models and queue are shared."""

    def __init__(self, models: list[str], loading: Loading, defaults: ChatConfig, seed: int) -> None:
        self.models = models
        self.loading = loading
        self.defaults = defaults
        self.seed = seed

    def build(self) -> gr.Blocks:
        """Return the page."""
        defaults = self.defaults
        with gr.Blocks(title="tometune chat", analytics_enabled=False, fill_width=True) as page:
            conversation = gr.State(Conversation(self.models, defaults.system or ""))
            key = sha256(json.dumps(self.models).encode()).hexdigest()[:12]
            saved = gr.BrowserState([], storage_key=f"tometune-chat-{key}", secret=key)
            download = gr.Textbox(visible=False)
            width = gr.Number(visible=False)
            with gr.Sidebar(width=290, open=False) as sidebar:
                new = gr.Button("New conversation", variant="primary", size="sm")
                listed = gr.Radio(choices=[], label="Conversations", elem_classes="tm-list", interactive=True)
                with gr.Row():
                    export = gr.Button("Save as JSON", size="sm", min_width=80)
                    delete = gr.Button("Delete", variant="stop", size="sm", min_width=80)
                system = gr.Textbox(defaults.system or "", label="System prompt", lines=2, max_lines=6)
                sampling = [
                    gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature"),
                    gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top-p"),
                    gr.Slider(1, 8192, defaults.max_new_tokens, step=1, label="Max new tokens"),
                    gr.Number(self.seed, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
                ]
            status = gr.HTML(elem_classes="tm-title", padding=False)
            chats, summaries = [], []
            with gr.Row():
                for model in self.models:
                    with gr.Column(min_width=300, scale=1, elem_classes="tm-side"):
                        chats.append(_chatbot(model))
                        summaries.append(gr.HTML(padding=False))
            box = gr.Textbox(
                placeholder="Ask something (Enter sends, Shift+Enter starts a new line)",
                show_label=False,
                container=False,
                submit_btn=True,
                max_lines=8,
                autofocus=True,
                interactive=False,
                elem_id="box",
            )

            quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
            view = [*chats, *summaries]
            js = "() => window.innerWidth"
            page.load(lambda width: gr.Sidebar(open=width >= 900), [width], [sidebar], js=js, **quiet)
            timer = gr.Timer(0.4)
            gr.on([page.load, timer.tick], self.status, None, [status, box, timer], **quiet)
            gr.on([page.load, saved.change], self.list_saved, [conversation, saved], [listed], **quiet)

            # All answers share one queue with one place: the models answer one prompt at a time.
            queued: Any = {
                "concurrency_id": "answers",
                "concurrency_limit": 1,
                "show_progress": "minimal",
                "show_progress_on": chats,
                "api_visibility": "private",
            }
            answers = [box.submit(self.ask, [conversation, box, system, *sampling], [box, *view], **queued)]
            for chat in chats:
                for event, handler in ((chat.retry, self.retry), (chat.edit, self.edit)):
                    answers.append(event(handler, [conversation, system, *sampling], [box, *view], **queued))
                chat.undo(self.undo, [conversation], [box, *view], **quiet)
            for answer in answers:  # also after an answer was stopped
                answer.then(self.finish, [conversation, saved], [box, saved, *view], **quiet)
            box.stop(None, None, None, cancels=answers, **quiet)

            opened: Any = {"outputs": [conversation, system, *view], "cancels": answers, **quiet}
            gr.on([new.click, *(chat.clear for chat in chats)], self.new, [system], **opened)
            listed.input(self.open, [listed, conversation, saved], **opened)
            delete.click(self.delete, [conversation, saved], [saved], **quiet).then(self.new, [system], **opened)
            export.click(self.export, [conversation], [download], **quiet).then(
                None, [download], None, js=DOWNLOAD, **quiet
            )
        return page

    def status(self) -> list[Any]:
        """Show the models and the progress of loading; enable the prompt box when they are loaded."""
        title = " and ".join(f"<b>{html.escape(model)}</b>" for model in self.models)
        loaded = self.loading.wait(0)
        detail = f"<p role='status'>Loading: {html.escape(self.loading.progress)}</p>"
        if loaded:
            error = html.escape(visible(str(self.loading.error or "")))
            detail = f"<p class='tm-error' role='alert'>{error}</p>" if error else ""
        box = gr.Textbox(interactive=loaded and self.loading.error is None)
        return [f"<h1>{title}</h1>{detail}", box, gr.Timer(active=not loaded)]

    def ask(self, conversation: Conversation, prompt: str, system: str, *sampling: float) -> Iterator[list[Any]]:
        """Answer a new prompt."""
        settings = _settings(*sampling)
        if prompt.strip():
            yield from self._answer(conversation, conversation.ask(prompt, settings.seed), system, settings)
        else:
            yield [gr.skip(), *self._view(conversation)]

    def retry(
        self, event: gr.RetryData, conversation: Conversation, system: str, *sampling: float
    ) -> Iterator[list[Any]]:
        """Answer a prompt again with the next seed."""
        settings = _settings(*sampling)
        yield from self._answer(conversation, conversation.retry(_turn(event), settings), system, settings)

    def edit(
        self, event: gr.EditData, conversation: Conversation, system: str, *sampling: float
    ) -> Iterator[list[Any]]:
        """Answer an edited prompt."""
        settings = _settings(*sampling)
        turn = conversation.edit(_turn(event), original(str(event.value)), settings)
        yield from self._answer(conversation, turn, system, settings)

    def undo(self, event: gr.UndoData, conversation: Conversation) -> list[Any]:
        """Remove a turn and put its prompt back into the box."""
        prompt = conversation.turns[_turn(event)].prompt
        del conversation.turns[_turn(event) :]
        return [prompt, *self._view(conversation)]

    def finish(self, conversation: Conversation, saved: Stored) -> list[Any]:
        """Show a complete or stopped answer and store the conversation in the browser."""
        others = [entry for entry in saved if entry.get("id") != conversation.id]
        kept = [asdict(conversation), *others][:SAVED] if conversation.turns else saved
        return [gr.Textbox(submit_btn=True, stop_btn=False), kept, *self._view(conversation)]

    def list_saved(self, conversation: Conversation, saved: Stored) -> Any:
        """List the stored conversations by title."""
        read = filter(None, (Conversation.from_dict(entry, self.models) for entry in saved))
        choices = [(each.title, each.id) for each in read]
        current = conversation.id if any(number == conversation.id for _, number in choices) else None
        return gr.Radio(choices=choices, value=current)

    def new(self, system: str) -> list[Any]:
        """Start a new conversation."""
        return self._opened(Conversation(self.models, system))

    def open(self, identity: str, conversation: Conversation, saved: Stored) -> list[Any]:
        """Open a stored conversation."""
        found = (Conversation.from_dict(entry, self.models) for entry in saved if entry.get("id") == identity)
        return self._opened(next(found, None) or conversation)

    def delete(self, conversation: Conversation, saved: Stored) -> Stored:
        """Remove the current conversation from the browser's storage."""
        return [entry for entry in saved if entry.get("id") != conversation.id]

    def export(self, conversation: Conversation) -> str:
        """Return the conversation as ShareGPT JSON."""
        return json.dumps(conversation.sharegpt(), ensure_ascii=False, indent=2)

    def _answer(self, conversation: Conversation, turn: Turn, system: str, settings: Settings) -> Iterator[list[Any]]:
        """Show the answers of all models, one after the other; closing this iterator stops the current one."""
        conversation.system = system
        settings = replace(settings, seed=turn.seed)
        yield [gr.Textbox("", submit_btn=False, stop_btn=True), *self._view(conversation)]
        self.loading.wait()
        try:
            for side, (engine, answer) in enumerate(zip(self.loading.engines, turn.answers, strict=False)):
                updated = time.monotonic()
                with closing(answer.generate(engine, conversation.messages(side), settings)) as pieces:  # type: ignore[type-var]
                    for _ in pieces:
                        if time.monotonic() - updated >= REFRESH:
                            yield [gr.skip(), *self._view(conversation, side)]
                            updated = time.monotonic()
        finally:
            for answer in turn.answers:
                answer.end = answer.end or str(End.stopped)
        yield [gr.skip(), *self._view(conversation)]

    def _opened(self, conversation: Conversation) -> list[Any]:
        return [conversation, conversation.system, *self._view(conversation)]

    def _view(self, conversation: Conversation, only: int | None = None) -> list[Any]:
        """Return the messages and the summary of each side; of the side `only` if the others have not changed."""
        sides = range(len(self.models))
        last = [turn.answers for turn in conversation.turns[-1:]]
        messages = [_messages(conversation, side) if only in (None, side) else gr.skip() for side in sides]
        summaries = [html.escape(visible(last[0][side].summary())) if last else "" for side in sides]
        return [*messages, *(f"<div class='tm-summary' role='status'>{text}</div>" for text in summaries)]


def _chatbot(label: str) -> gr.Chatbot:
    """Return an empty chat in which messages cannot become live HTML (see `inert`)."""
    return gr.Chatbot(
        label=label,
        height="calc(100dvh - 185px)",
        editable="user",
        buttons=["copy"],
        allow_tags=False,
        sanitize_html=True,
        latex_delimiters=[],  # KaTeX would get the text between them unescaped
        layout="bubble",
        feedback_options=None,
        elem_classes="tm-chat",
    )


def _messages(conversation: Conversation, side: int) -> list[dict[str, str]]:
    """Return the messages of one model as Gradio expects them, with inert texts."""
    messages = []
    for turn in conversation.turns:
        hidden = len(turn.prompt) - LONGEST_SHOWN
        more = f"\n\n… {hidden:,} more characters are not shown" if hidden > 0 else ""
        messages.append({"role": "user", "content": markdown(turn.prompt[:LONGEST_SHOWN] + more)})
        messages.append({"role": "assistant", "content": _shown(turn.answers[side])})
    return messages


def _shown(answer: Answer) -> str:
    return markdown(answer.text) or ("…" if answer.end is None else "*(no text)*")


def _settings(temperature: float, top_p: float, max_new_tokens: float, seed: float) -> Settings:
    return Settings(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))


def _turn(event: Any) -> int:
    """Return the number of the turn that a message of a chat belongs to; a turn has two messages."""
    index = event.index
    return int(index[0] if isinstance(index, Sequence) else index) // 2
