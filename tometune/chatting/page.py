"""The page: one or two chats side by side, a box to write in, the conversations and the settings beside them."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from tometune.chatting import browser
from tometune.chatting.handlers import Chat, Handlers
from tometune.chatting.session import Session

LONGEST_ANSWER, MOST_TEMPERATURE = 8192, 2.0
"""Ends of the sliders."""


@dataclass(frozen=True)
class Parts:
    """What is on the page, and what carries values out of sight."""

    session: gr.State
    kept: gr.Textbox
    gone: gr.Textbox
    file: gr.Textbox
    width: gr.Number
    sidebar: gr.Sidebar
    new: gr.Button
    listed: gr.Radio
    save: gr.Button
    delete: gr.Button
    system: gr.Textbox
    drawn: list[Any]
    """Temperature, top-p, max new tokens and seed."""

    status: gr.HTML
    chats: list[gr.Chatbot]
    below: list[gr.HTML]
    box: gr.Textbox


def build(chat: Chat) -> gr.Blocks:
    """Return the page."""
    handlers = Handlers(chat)
    defaults = chat.defaults
    with gr.Blocks(title="tometune chat", analytics_enabled=False, fill_width=True) as page:
        session = gr.State(Session())
        kept = gr.Textbox(visible=False)
        gone = gr.Textbox(visible=False)
        file = gr.Textbox(visible=False)
        width = gr.Number(visible=False)
        with gr.Sidebar(width=290, open=False) as sidebar:
            new = gr.Button("New conversation", variant="primary", size="sm")
            listed = gr.Radio(choices=[], label="Conversations", elem_classes="tm-list", interactive=True)
            with gr.Row():
                save = gr.Button("Save as JSON", size="sm", min_width=80)
                delete = gr.Button("Delete", variant="stop", size="sm", min_width=80)
            system = gr.Textbox(defaults.system or "", label="System prompt", lines=2, max_lines=6)
            drawn = [
                gr.Slider(0, MOST_TEMPERATURE, defaults.temperature, step=0.05, label="Temperature"),
                gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top-p"),
                gr.Slider(1, LONGEST_ANSWER, defaults.max_new_tokens, step=1, label="Max new tokens"),
                gr.Number(chat.seed, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
            ]
        status = gr.HTML(chat.status(), elem_classes="tm-title", padding=False)
        chats, below = [], []
        with gr.Row():
            for model in chat.models:
                with gr.Column(min_width=300, scale=1, elem_classes="tm-side"):
                    chats.append(
                        gr.Chatbot(
                            label=model,
                            height="calc(100dvh - 185px)",
                            editable="user",
                            buttons=["copy"],
                            allow_tags=False,
                            sanitize_html=True,
                            latex_delimiters=[],  # KaTeX is given what stands between them as it is, tags included
                            layout="bubble",
                            feedback_options=None,
                            elem_classes="tm-chat",
                        )
                    )
                    below.append(gr.HTML("<div class='tm-said'></div>", padding=False))
        box = gr.Textbox(
            placeholder="Ask something (Enter sends, Shift+Enter makes a new line)",
            show_label=False,
            container=False,
            submit_btn=True,
            max_lines=8,
            autofocus=True,
            interactive=False,
            elem_id="box",
        )
        parts = Parts(
            session,
            kept,
            gone,
            file,
            width,
            sidebar,
            new,
            listed,
            save,
            delete,
            system,
            drawn,
            status,
            chats,
            below,
            box,
        )
        _wire(page, handlers, parts)
    return page


def _wire(page: gr.Blocks, handlers: Handlers, parts: Parts) -> None:
    """Say what happens when."""
    session, system, listed, box = parts.session, parts.system, parts.listed, parts.box
    chats, below, drawn, kept, file = parts.chats, parts.below, parts.drawn, parts.kept, parts.file
    models = handlers.chat.models
    shown = [listed, system, *chats, *below]
    stepped = [box, listed, *chats, *below]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    page.load(
        handlers.load,
        [kept, parts.width],
        [parts.sidebar, box, session, *shown],
        js=browser.load(models),
        **quiet,
    )
    timer = gr.Timer(0.4)

    def tick() -> list[Any]:
        """Show how far loading is, until it is over."""
        return [handlers.chat.status(), gr.Timer(active=not handlers.chat.loading.wait(0))]

    timer.tick(tick, None, [parts.status, timer], **quiet)
    page.unload(handlers.stop)
    box.stop(handlers.stop, None, None, queue=False, **quiet)

    answers = [box.submit(handlers.ask, [session, box, system, *drawn], stepped, concurrency_limit=None, **quiet)]
    for chat in chats:
        chat.clear(handlers.new, [session, system], shown, **quiet)
        for event, handler in ((chat.retry, handlers.retry), (chat.edit, handlers.edit)):
            answers.append(event(handler, [session, system, *drawn], stepped, concurrency_limit=None, **quiet))
    for answer in answers:
        answer.then(handlers.keep, [session], [kept], **quiet).then(
            None, [kept], None, js=browser.save(models), **quiet
        )
    parts.new.click(handlers.new, [session, system], shown, **quiet)
    listed.input(handlers.open, [session, listed], shown, **quiet)
    parts.delete.click(handlers.delete, [session], [parts.gone, *shown], **quiet).then(
        None, [parts.gone], None, js=browser.forget(models), **quiet
    )
    parts.save.click(handlers.export, [session], [file], **quiet).then(None, [file], None, js=browser.DOWNLOAD, **quiet)
