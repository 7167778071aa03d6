"""The page: one or two chats side by side, a prompt box, and a sidebar with the settings; only on this machine.

HTML, images and diagrams in the text of a model or a user are made harmless three times: by `safe_markdown`, by
Gradio's sanitiser, and by `POLICY`. Importing this module imports Gradio, which takes seconds.
"""

import contextlib
import html
import io
import json
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# isort: split
import gradio as gr
from markdown_it import MarkdownIt
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from tometune.chatting.conversation import Conversation, End, Engine, Settings, Turn, show_control_characters
from tometune.common.errors import UserError
from tometune.config.root import ChatConfig

Updates = Iterator[list[Any]]

HOST = "127.0.0.1"  # the page is served to this machine only
PASSWORD = "TOMETUNE_CHAT_PASSWORD"  # noqa: S105 -- the name of a variable
"""Environment variable with the password of a shared page. It is never printed; only a generated one is."""

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
.tm-chat { --rest: 150px; --below: 1; height: calc((100dvh - var(--rest)) / var(--below)) !important; }
.tm-chat .placeholder { padding: 0 1rem; text-align: center; }
div:has(> .tm-offer) .tm-chat { --rest: 195px; }
@media (max-width: 700px) {
  .tm-chat { --below: var(--chats); --rest: calc(110px + 70px * var(--chats)); font-size: .8rem; }
  div:has(> .tm-offer) .tm-chat { --below: var(--chats); --rest: calc(250px + 50px * var(--chats)); }
  .tm-offer button { min-width: 100% !important; }
}
"""

EXAMPLES = (
    "Explain why the sky is blue.",
    "Write a Python function that reverses a string.",
    "What belongs in a good bug report?",
)
"""Prompts that the empty page offers."""

BOTH = "\n\nBoth models answer each prompt, with the same settings and seed."

CLOSE_SETTINGS = "() => { if (innerWidth < 700) document.querySelector('.sidebar.open .toggle-button')?.click() }"
"""On a phone the open sidebar would cover the chats."""

CHATBOT: dict[str, Any] = {
    "editable": "user",
    "buttons": ["copy"],
    "allow_tags": False,
    "sanitize_html": True,
    "latex_delimiters": [],  # KaTeX would get the text between them unescaped
    "feedback_options": None,
    "elem_classes": "tm-chat",
}
"""Settings with which a chat's messages cannot become live HTML."""

JOINER = "\N{WORD JOINER}"  # an invisible character that is not allowed in the name of a tag
TAG = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")  # the beginning of a tag, or of an image, which a browser would download
BROKEN = rf"\g<0>{JOINER}"  # what a beginning becomes
MERMAID = re.compile("```(?=mermaid)")  # Gradio would draw such a code block, including its tags and links
PARSER = MarkdownIt("commonmark", {"html": True})

POSTS = frozenset(["/login", *(f"/gradio_api/{name}" for name in ("queue/join", "run/predict", "cancel", "reset"))])
"""The routes that the page needs; everything else that writes (uploads, recordings, code) is refused."""

POLICY = (  # Gradio's page needs inline scripts and eval
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content security policy: the browser loads nothing from another host, whatever a text on the page says."""


@dataclass
class ChatPage:
    """The page and its event handlers. Each tab has a `Conversation` of its own; models and queue are shared.

    The index of an event is that of a message; each turn has two.
    """

    models: list[str]
    titles: list[str]  # what the user reads of each model
    engines: Future[list[Engine]]  # in the order of `models`; loaded while the page is already served
    defaults: ChatConfig
    seed: int

    def serve(self, share: bool) -> tuple[gr.Blocks, str]:
        """Serve the page in the background and print its address. Returns the page and the address.

        Raises:
            UserError: the port is taken, or the page cannot be shared.
        """
        page = self.build()
        chosen = os.environ.get(PASSWORD)
        password = chosen or secrets.token_urlsafe(9)
        theme = gr.themes.Base(
            primary_hue="blue",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],  # the default fonts come from another host
            font_mono=["ui-monospace", "monospace"],
        )
        # Without this check another website could point its own name at 127.0.0.1 and then read the page (DNS
        # rebinding). A shared page has an unknown public name.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if share else [HOST, "localhost"])
        middleware = [hosts, Middleware(BaseHTTPMiddleware, dispatch=guard)]
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # Gradio's advice if it cannot share
                _, local, public = page.queue(default_concurrency_limit=None, api_open=False).launch(
                    server_name=HOST,
                    server_port=self.defaults.port,
                    share=share,
                    auth=("chat", password) if share else None,
                    inbrowser=bool(self.defaults.inbrowser),
                    prevent_thread_lock=True,
                    quiet=True,
                    ssr_mode=False,
                    enable_monitoring=False,
                    footer_links=[],
                    max_file_size=1,
                    theme=theme,
                    css=f":root {{ --chats: {len(self.models)} }}{CSS}",
                    app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
                )
        except OSError as error:
            raise UserError(f"chat.port={self.defaults.port}: in use; choose another port, or null") from error
        if share and not public:
            page.close(verbose=False)
            raise UserError("share=true: Gradio's servers cannot be reached or its tunnel is not installed; omit share")
        page.share = False  # otherwise Gradio's page loads a script from another host
        print(f"chat page: {local} (Ctrl-C ends it)", flush=True)
        if share:
            secret = f"the password in {PASSWORD}" if chosen else f"password {password}"
            print(f"public address: {public} user chat, {secret}", flush=True)
        return page, str(local)

    def build(self) -> gr.Blocks:
        """Return the page."""
        defaults = self.defaults
        with gr.Blocks(title="tometune chat", analytics_enabled=False, fill_width=True) as page:
            conversation = gr.State(Conversation(self.models, defaults.system or ""))
            download = gr.Textbox(visible=False)
            with gr.Sidebar(width=290):
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
            both = BOTH if len(self.titles) > 1 else ""
            with gr.Row():
                for title in self.titles:
                    with gr.Column(min_width=300):
                        empty = f"**{safe_markdown(title)}**{both}"
                        chats.append(gr.Chatbot(label=title, placeholder=empty, **CHATBOT))
                        summaries.append(gr.HTML(padding=False))
            with gr.Row(elem_classes="tm-offer") as offer:
                examples = [gr.Button(text, size="sm", min_width=200) for text in EXAMPLES]
            box = gr.Textbox(
                placeholder="Ask something (Enter sends, Shift+Enter starts a new line)",
                show_label=False,
                container=False,
                submit_btn=True,
                max_lines=8,
                autofocus=True,
                elem_id="box",
            )

            shown = [box, offer, *chats, *summaries]
            quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
            queued: Any = {  # all answers share one queue: the models answer one prompt at a time
                "concurrency_id": "answers",
                "concurrency_limit": 1,
                "show_progress": "minimal",
                "show_progress_on": chats,
                "api_visibility": "private",
            }
            prompts = [(box.submit, box), *((button.click, button) for button in examples)]
            inputs = [system, *sampling]
            answers = [event(self._ask, [conversation, text, *inputs], shown, **queued) for event, text in prompts]
            page.load(None, None, None, js=CLOSE_SETTINGS, **quiet)
            for chat in chats:
                for event, handler in ((chat.retry, self._retry), (chat.edit, self._edit)):
                    answers.append(event(handler, [conversation, *inputs], shown, **queued))
                chat.undo(self._undo, [conversation], shown, **quiet)
            for answer in answers:  # also after an answer was stopped
                answer.then(self._finish, [conversation], shown, **quiet)
            box.stop(None, None, None, cancels=answers, **quiet)
            clear = [new.click, *(chat.clear for chat in chats)]
            gr.on(clear, self._new, [system], [conversation, *shown], cancels=answers, **quiet)
            exported = export.click(lambda chat: json.dumps(chat.sharegpt()), [conversation], [download], **quiet)
            exported.then(None, [download], None, js=DOWNLOAD, **quiet)
        return page

    def _ask(self, conversation: Conversation, prompt: str, system: str, *sampling: float) -> Updates:
        settings = _settings(*sampling)
        if prompt.strip():
            yield from self._answer(conversation, conversation.ask(prompt, settings.seed), system, settings)
        else:
            yield [gr.skip(), *self._chats(conversation)]

    def _retry(self, event: gr.RetryData, conversation: Conversation, system: str, *sampling: float) -> Updates:
        settings = _settings(*sampling)
        yield from self._answer(conversation, conversation.retry(event.index // 2, settings), system, settings)

    def _edit(self, event: gr.EditData, conversation: Conversation, system: str, *sampling: float) -> Updates:
        settings = _settings(*sampling)
        turn = conversation.edit(event.index // 2, str(event.value).replace(JOINER, ""), settings)
        yield from self._answer(conversation, turn, system, settings)

    def _undo(self, event: gr.UndoData, conversation: Conversation) -> list[Any]:
        """Remove a turn and put its prompt back into the box."""
        number = event.index // 2
        prompt = conversation.turns[number].prompt
        del conversation.turns[number:]
        return [prompt, *self._chats(conversation)]

    def _finish(self, conversation: Conversation) -> list[Any]:
        return [gr.Textbox(submit_btn=True, stop_btn=False), *self._chats(conversation)]

    def _new(self, system: str) -> list[Any]:
        conversation = Conversation(self.models, system)
        return [conversation, *self._finish(conversation)]

    def _answer(self, conversation: Conversation, turn: Turn, system: str, settings: Settings) -> Updates:
        """Show the answers of all models, one after the other. Gradio closes the iterator to stop them."""
        conversation.system = system
        settings = replace(settings, seed=turn.seed)
        if not self.engines.done():
            turn.answers[0].note = "the models are being loaded"
        yield [gr.Textbox("", submit_btn=False, stop_btn=True), *self._chats(conversation)]
        try:
            while not self.engines.done():
                time.sleep(REFRESH)
                yield [gr.skip(), *self._chats(conversation)]  # an opportunity to stop
            for side, (engine, answer) in enumerate(zip(self.engines.result(), turn.answers, strict=True)):
                updated = time.monotonic()
                with contextlib.closing(answer.generate(engine, conversation.messages(side), settings)) as pieces:
                    for _ in pieces:
                        if time.monotonic() - updated >= REFRESH:
                            yield [gr.skip(), *self._chats(conversation)]
                            updated = time.monotonic()
        finally:
            for answer in turn.answers:
                answer.end = answer.end or End.stopped
        yield [gr.skip(), *self._chats(conversation)]

    def _chats(self, conversation: Conversation) -> list[Any]:
        """Return the row of examples, the messages of each chat as Gradio expects them, then the last summaries."""
        sides = range(len(self.models))
        chats = [[message for turn in conversation.turns for message in _messages(turn, side)] for side in sides]
        last = conversation.turns[-1].answers if conversation.turns else []
        summaries = [html.escape(show_control_characters(answer.summary())) for answer in last] or [""] * len(chats)
        offer = gr.Row(visible=not conversation.turns)
        return [offer, *chats, *(f"<div class='tm-summary' role='status'>{text}</div>" for text in summaries)]


def _messages(turn: Turn, side: int) -> list[dict[str, str]]:
    hidden = len(turn.prompt) - LONGEST_SHOWN
    more = f"\n\n… {hidden:,} more characters are not shown" if hidden > 0 else ""
    answer = turn.answers[side]
    shown = safe_markdown(answer.text) or ("…" if answer.end is None else "*(no text)*")
    return [
        {"role": "user", "content": safe_markdown(turn.prompt[:LONGEST_SHOWN] + more)},
        {"role": "assistant", "content": shown},
    ]


def _settings(temperature: float, top_p: float, max_new_tokens: float, seed: float) -> Settings:
    return Settings(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))


@lru_cache(maxsize=1024)  # a page renders all messages again with each update of the last one
def safe_markdown(text: str) -> str:
    """Return Markdown without live tags, images and diagrams; nothing is added to it but `JOINER`.

    Code blocks are left alone, because Markdown escapes them and they should be copied unchanged. If the parser still
    finds a tag afterwards, the code blocks are changed as well.
    """
    text = MERMAID.sub(f"```{JOINER}", show_control_characters(text))
    blocks = [token for token in PARSER.parse(text) if token.type in ("fence", "code_block") and token.map]
    code = {line for block in blocks for line in range(*block.map or ())}
    lines = [line if number in code else TAG.sub(BROKEN, line) for number, line in enumerate(text.split("\n"))]
    tokens = PARSER.parse("\n".join(lines))
    tokens += [child for token in tokens for child in token.children or ()]
    live = any(token.type in ("html_block", "html_inline", "image") for token in tokens)
    return TAG.sub(BROKEN, text) if live else "\n".join(lines)


async def guard(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """HTTP middleware that rejects uploads and other writes, and adds headers with the policy to every response."""
    if request.method in ("GET", "HEAD") or request.scope["path"].rstrip("/") in POSTS:
        response = await answer(request)
    else:
        response = PlainTextResponse("this page does not accept such requests", 405)
    headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    response.headers.update(headers)
    return response
