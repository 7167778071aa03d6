"""Serves the page: on this machine only unless asked, and with headers that keep the browser to this machine too."""

import contextlib
import io
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware

from tometune.chatting.browser import CSS
from tometune.common.errors import UserError
from tometune.config.chat import ChatConfig

HOST = "127.0.0.1"
USER = "chat"
PASSWORD = "TOMETUNE_CHAT_PASSWORD"  # noqa: S105 -- the name of a variable
"""Environment variable with the password of a shared page; it is not printed, only one that is made up is."""

WRITES = frozenset(["/login", *(f"/gradio_api/{route}" for route in ("queue/join", "run/predict", "cancel", "reset"))])
"""What the page posts to; all else that writes (uploads, recordings, code) is not there."""

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page cannot do without either
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
"""What the browser may load: nothing from another host, whatever a text on the page asks for."""

Message = MutableMapping[str, Any]


class Guard:
    """Middleware: adds the policy, answers only to this machine's own names, and takes no files.

    A page elsewhere can point its own name at 127.0.0.1 (DNS rebinding); its requests carry that name.
    """

    def __init__(self, app: Any, shared: bool) -> None:
        self.app = app
        self.shared = shared

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not self.shared and urlsplit(f"//{host}").hostname not in (HOST, "localhost"):
            await _refuse(send, 421, b"this page is for this machine: http://127.0.0.1")
            return
        if scope["method"] not in ("GET", "HEAD") and scope["path"].rstrip("/") not in WRITES:
            await _refuse(send, 405, b"this page takes nothing of this kind")
            return

        async def guarded(message: Message) -> None:
            """Add the headers."""
            if message["type"] == "http.response.start":
                added = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
                added |= {"referrer-policy": "no-referrer", "x-robots-tag": "noindex"}
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in added.items()),
                ]
            await send(message)

        await self.app(scope, receive, guarded)


async def _refuse(send: Callable[[Message], Awaitable[None]], status: int, why: bytes) -> None:
    """Answer in the place of the page."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why})


def serve(page: gr.Blocks, config: ChatConfig, share: bool) -> str:
    """Serve the page in the background, say where it is, and return its address on this machine.

    Raises:
        UserError: the port is taken, or the page cannot be shared.
    """
    chosen = os.environ.get(PASSWORD)
    password = chosen or secrets.token_urlsafe(9)
    said = io.StringIO()  # Gradio's advice where it cannot share
    try:
        with contextlib.redirect_stdout(said):
            _, local, public = page.queue(default_concurrency_limit=None, api_open=False).launch(
                server_name=HOST,
                server_port=config.port,
                share=share,
                auth=(USER, password) if share else None,
                inbrowser=opens(config.inbrowser, share),
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                footer_links=[],
                allowed_paths=[],
                max_file_size=1,
                theme=gr.themes.Base(
                    primary_hue="blue",
                    neutral_hue="slate",
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ),
                css=CSS,
                app_kwargs={"middleware": [Middleware(Guard, shared=share)], "docs_url": None, "redoc_url": None},
            )
    except OSError as error:
        raise UserError(f"chat.port={config.port}: {str(error).splitlines()[0]}; take another, or null") from error
    if share and not public:
        page.close(verbose=False)
        raise UserError(
            "share=true: Gradio's servers cannot be reached, or its tunnel is not installed; leave share out"
        )
    page.share = False  # with it Gradio sends a page whose program comes from a host of its own, not from this one
    print(f"chat page: {local} (Ctrl-C ends it)", flush=True)
    if share:
        which = f"the password of {PASSWORD}" if chosen else f"password {password}"
        print(f"from elsewhere: {public} user {USER}, {which}", flush=True)
    return str(local)


def opens(wanted: bool | None, share: bool) -> bool:
    """Tell whether to open a browser: as wanted, else where there is a screen and somebody before it."""
    if wanted is not None:
        return wanted
    remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return bool(screen) and not remote and not share and sys.stdout.isatty()
