"""Text made inert: what a model or a user wrote is shown, and never does anything.

On the page there are three walls: what is here, the sanitiser of Gradio's Markdown, and the page's content security
policy (`serving`), under which the browser asks no other host for anything.
"""

import re
from functools import lru_cache

from markdown_it import MarkdownIt

JOINER = "\N{WORD JOINER}"
"""Invisible, and no part of a tag's name."""

TAG = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
"""What begins a tag, or a picture, which a browser would fetch."""

DRAWN = re.compile("```(?=mermaid)")
"""What begins a block that Gradio would not show as code: it makes a live drawing of it, tags and links included."""

PARSER = MarkdownIt("commonmark", {"html": True})
CODE = ("fence", "code_block")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of writing."""

LONGEST = 20_000
"""Characters of one message that the page shows."""


@lru_cache(maxsize=1024)  # a page shows all messages anew with each token of the last
def markdown(text: str) -> str:
    """Return Markdown whose tags and pictures are text; blocks of code are left as they are, for Markdown escapes them.

    Diagrams too are shown as the code they are.

    What is a block of code, a parser says; and if, in what has become of the text, it still finds a tag, every line is
    taken for one that may have some.
    """
    shown = DRAWN.sub(f"```{JOINER}", visible(text))
    code = {line for block in PARSER.parse(shown) if block.type in CODE and block.map for line in range(*block.map)}
    lines = (line if number in code else _apart(line) for number, line in enumerate(shown.split("\n")))
    mended = "\n".join(lines)
    return mended if _harmless(mended) else _apart(shown)


def _harmless(text: str) -> bool:
    """Tell whether Markdown finds no tag and no picture in a text."""
    found = PARSER.parse(text)
    inside = (child for block in found for child in block.children or ())
    return not any(token.type in ("html_block", "html_inline", "image") for token in (*found, *inside))


def _apart(text: str) -> str:
    """Put an invisible character into what would begin a tag or a picture."""
    return TAG.sub(lambda match: match.group() + JOINER, text)


def original(shown: str) -> str:
    """Return the text that a user has edited, without what was put in to show it."""
    return shown.replace(JOINER, "")


def visible(text: str) -> str:
    """Return a text with its control characters as pictures of them: they move no cursor and hide nothing."""
    return CONTROL.sub(_picture, text.replace("\r\n", "\n"))


def _picture(match: re.Match[str]) -> str:
    """Return the sign for a control character."""
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def shortened(text: str) -> str:
    """Return what the page shows of a long message."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n\n… and {len(text) - LONGEST:,} characters more, which are not shown"
