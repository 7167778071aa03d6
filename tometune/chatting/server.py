"""Serves the page: on this machine only unless shared, with headers that keep the browser from asking other hosts."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from tometune.chatting.engine import Engine
from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
from tometune.config.root import ChatConfig

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
USER = "chat"
PASSWORD = "TOMETUNE_CHAT_PASSWORD"  # noqa: S105 -- the name of a variable
"""Environment variable with the password of a shared page. It is never printed; only a generated one is."""

POSTS = frozenset(["/login", *(f"/gradio_api/{name}" for name in ("queue/join", "run/predict", "cancel", "reset"))])
"""The routes that the page needs; everything else that writes (uploads, recordings, code) is refused."""

POLICY = (  # Gradio's page needs inline scripts and eval
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content security policy: the browser loads nothing from another host, whatever a text on the page says."""

HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-robots-tag", b"noindex"),
]

Message = MutableMapping[str, Any]


def guard(app: Any, shared: bool) -> Callable[..., Awaitable[None]]:
    """Make an ASGI app that adds `HEADERS`, accepts only this machine's own names, and rejects uploads.

    The names are checked because a website can point its own name at 127.0.0.1 (DNS rebinding).
    """

    async def guarded(scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        answer = app
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not shared and urlsplit(f"//{host}").hostname not in (HOST, "localhost"):
                answer = PlainTextResponse(f"this page is only available as http://{HOST}", 421)
            elif scope["method"] not in ("GET", "HEAD") and scope["path"].rstrip("/") not in POSTS:
                answer = PlainTextResponse("this page does not accept such requests", 405)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await answer(scope, receive, send_with_headers)

    return guarded


def serve(
    models: list[str], engines: Sequence[Engine], config: ChatConfig, seed: int, share: bool
) -> tuple[gr.Blocks, str]:
    """Serve the page in the background and print its address. Returns the page and the address.

    Raises:
        UserError: the page cannot be shared.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with quick_imports():
        import gradio as gr

        from tometune.chatting.page import CSS, ChatPage

    page = ChatPage(models, engines, config, seed).build()
    chosen = os.environ.get(PASSWORD)
    password = chosen or secrets.token_urlsafe(9)
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],  # the default fonts come from another host
        font_mono=["ui-monospace", "monospace"],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # Gradio's advice if it cannot share
        _, local, public = page.queue(default_concurrency_limit=None, api_open=False).launch(
            server_name=HOST,
            server_port=config.port,
            share=share,
            auth=(USER, password) if share else None,
            inbrowser=bool(config.inbrowser),
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=1,
            theme=theme,
            css=CSS,
            app_kwargs={"middleware": [Middleware(guard, shared=share)], "docs_url": None, "redoc_url": None},
        )
    if share and not public:
        page.close(verbose=False)
        raise UserError("share=true: Gradio's servers cannot be reached or its tunnel is not installed; omit share")
    page.share = False  # otherwise Gradio's page loads a script from another host
    print(f"chat page: {local} (Ctrl-C ends it)", flush=True)
    if share:
        secret = f"the password in {PASSWORD}" if chosen else f"password {password}"
        print(f"public address: {public} user {USER}, {secret}", flush=True)
    return page, str(local)
