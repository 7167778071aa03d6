"""Serves the page: on this machine only unless shared, with headers that keep the browser from asking other hosts."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
from tometune.config.chat import ChatConfig

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
USER = "chat"
PASSWORD = "TOMETUNE_CHAT_PASSWORD"  # noqa: S105 -- the name of a variable
"""Environment variable with the password of a shared page. It is never printed; only a generated one is."""

POSTS = frozenset(["/login", *(f"/gradio_api/{name}" for name in ("queue/join", "run/predict", "cancel", "reset"))])
"""The routes that the page needs; everything else that writes (uploads, recordings, code) is refused."""

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    ]
)
"""Content security policy: the browser loads nothing from another host, whatever a text on the page says."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
}

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware: adds `HEADERS`, accepts only this machine's own names, and refuses uploads.

    The names are checked because a website can point its own name at 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: Any, shared: bool) -> None:
        self.app = app
        self.shared = shared

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        app = self.app
        if not self.shared and urlsplit(f"//{host}").hostname not in (HOST, "localhost"):
            app = PlainTextResponse(f"this page is only available as http://{HOST}", 421)
        elif scope["method"] not in ("GET", "HEAD") and scope["path"].rstrip("/") not in POSTS:
            app = PlainTextResponse("this page does not accept such requests", 405)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await app(scope, receive, send_with_headers)


def import_gradio() -> None:
    """Import Gradio without telemetry and without the stub files that it writes next to its own sources.

    Parsing its sources for them takes a third of the import (1.1 of 3.0 s of CPU time). It skips components for which
    `inspect.getfile` fails.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    getfile = inspect.getfile

    def without_gradio(thing: Any) -> str:
        if getattr(thing, "__module__", "").startswith("gradio."):
            raise OSError("not needed")
        return getfile(thing)

    inspect.getfile = without_gradio  # type: ignore[assignment]
    try:
        with quick_imports():
            import gradio  # noqa: F401
    finally:
        inspect.getfile = getfile


def serve(page: gr.Blocks, config: ChatConfig, share: bool, css: str) -> str:
    """Serve the page in the background, print its address, and return it.

    Raises:
        UserError: the port is taken, or the page cannot be shared.
    """
    import gradio as gr

    chosen = os.environ.get(PASSWORD)
    password = chosen or secrets.token_urlsafe(9)
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],  # the default fonts come from another host
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Gradio's advice if it cannot share
            _, local, public = page.queue(default_concurrency_limit=None, api_open=False).launch(
                server_name=HOST,
                server_port=config.port,
                share=share,
                auth=(USER, password) if share else None,
                inbrowser=opens_browser(config.inbrowser, share),
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                footer_links=[],
                allowed_paths=[],
                max_file_size=1,
                theme=theme,
                css=css,
                app_kwargs={"middleware": [Middleware(Guard, shared=share)], "docs_url": None, "redoc_url": None},
            )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"chat.port={config.port}: {reason}; choose another port, or null") from error
    if share and not public:
        page.close(verbose=False)
        raise UserError("share=true: Gradio's servers cannot be reached or its tunnel is not installed; omit share")
    page.share = False  # otherwise Gradio's page loads a script from another host
    print(f"chat page: {local} (Ctrl-C ends it)", flush=True)
    if share:
        secret = f"the password in {PASSWORD}" if chosen else f"password {password}"
        print(f"public address: {public} user {USER}, {secret}", flush=True)
    return str(local)


def opens_browser(wanted: bool | None, share: bool) -> bool:
    """Return whether to open a browser: as wanted, otherwise if a person sits in front of a local screen."""
    if wanted is not None:
        return wanted
    remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return bool(screen) and not remote and not share and sys.stdout.isatty()
