"""Protects the page: harmless Markdown, a content security policy, no other host names, and no uploads.

HTML, images and diagrams in the text of a model or a user are made harmless three times: here, by Gradio's sanitiser,
and by the policy, with which a browser loads nothing from another host.
"""

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from starlette.middleware import Middleware

HOST = "127.0.0.1"  # the page is served to this machine only

JOINER = "\N{WORD JOINER}"  # an invisible character that is not allowed in the name of a tag
TAG = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")  # the beginning of a tag, or of an image, which a browser would download
MERMAID = re.compile("```(?=mermaid)")  # Gradio would draw such a code block, including its tags and links
SYMBOLS = {
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\N{SYMBOL FOR DELETE}",
}
"""Replacements for control characters, and for those that change the direction of writing."""

PARSER = MarkdownIt("commonmark", {"html": True})


@lru_cache(maxsize=1024)  # a page renders all messages again with each update of the last one
def safe_markdown(text: str) -> str:
    """Return Markdown without live tags, images and diagrams; nothing is added to it but `JOINER`.

    Code blocks are left alone, because Markdown escapes them and they should be copied unchanged. If the parser still
    finds a tag afterwards, the code blocks are changed as well.
    """
    text = MERMAID.sub(f"```{JOINER}", show_control_characters(text))
    blocks = [token for token in PARSER.parse(text) if token.type in ("fence", "code_block") and token.map]
    code = {line for block in blocks for line in range(*block.map or ())}
    lines = [line if number in code else _without_tags(line) for number, line in enumerate(text.split("\n"))]
    tokens = PARSER.parse("\n".join(lines))
    tokens += [child for token in tokens for child in token.children or ()]
    live = any(token.type in ("html_block", "html_inline", "image") for token in tokens)
    return _without_tags(text) if live else "\n".join(lines)


def _without_tags(text: str) -> str:
    return TAG.sub(lambda match: match.group() + JOINER, text)


def show_control_characters(text: str) -> str:
    """Return a text in which control characters are replaced by symbols for them."""
    return text.replace("\r\n", "\n").translate(SYMBOLS)


POSTS = frozenset(["/login", *(f"/gradio_api/{name}" for name in ("queue/join", "run/predict", "cancel", "reset"))])
"""The routes that the page needs; everything else that writes (uploads, recordings, code) is refused."""

POLICY = (  # Gradio's page needs inline scripts and eval
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content security policy: the browser loads nothing from another host, whatever a text on the page says."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def allowed_hosts_check(share: bool) -> "Middleware":
    """Return the middleware that rejects requests to another host name; a shared page has an unknown public name.

    Without it another website could point its own name at 127.0.0.1 and then read the page (DNS rebinding).
    """
    from starlette.middleware import Middleware  # installed with Gradio, which the terminal does not need
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if share else [HOST, "localhost"])


async def guard(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """HTTP middleware that rejects uploads and other writes, and adds `HEADERS` to every response."""
    from starlette.responses import PlainTextResponse

    if request.method in ("GET", "HEAD") or request.scope["path"].rstrip("/") in POSTS:
        response = await answer(request)
    else:
        response = PlainTextResponse("this page does not accept such requests", 405)
    response.headers.update(HEADERS)
    return response
