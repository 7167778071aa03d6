"""Makes text inert: what a model or a user wrote is shown as text and cannot do anything.

The page has two more layers of protection: Gradio's sanitiser and the content security policy in `server`.
"""

import re
from functools import lru_cache

from markdown_it import MarkdownIt

JOINER = "\N{WORD JOINER}"
"""An invisible character that is not allowed in the name of a tag."""

TAG = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
"""The beginning of a tag or of an image, which a browser would download."""

MERMAID = re.compile("```(?=mermaid)")
"""Gradio would draw such a code block, including its tags and links."""

SYMBOLS = {
    **dict.fromkeys([*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\N{SYMBOL FOR DELETE}",
}
"""Replacements for control characters, and for those that change the direction of writing."""

PARSER = MarkdownIt("commonmark", {"html": True})


@lru_cache(maxsize=1024)  # a page renders all messages again with each update of the last one
def markdown(text: str) -> str:
    """Return Markdown without live tags, images and diagrams.

    Code blocks are left alone, because Markdown escapes them and they should be copied unchanged. If the parser still
    finds a tag afterwards, the code blocks are changed as well.
    """
    text = MERMAID.sub(f"```{JOINER}", visible(text))
    blocks = [token for token in PARSER.parse(text) if token.type in ("fence", "code_block") and token.map]
    code = {line for block in blocks for line in range(*block.map or ())}
    lines = [line if number in code else _without_tags(line) for number, line in enumerate(text.split("\n"))]
    tokens = PARSER.parse("\n".join(lines))
    tokens += [child for token in tokens for child in token.children or ()]
    live = any(token.type in ("html_block", "html_inline", "image") for token in tokens)
    return _without_tags(text) if live else "\n".join(lines)


def _without_tags(text: str) -> str:
    return TAG.sub(lambda match: match.group() + JOINER, text)


def original(shown: str) -> str:
    """Return the text that the user edited, without the characters that `markdown` added."""
    return shown.replace(JOINER, "")


def visible(text: str) -> str:
    """Return a text in which control characters are replaced by symbols for them."""
    return text.replace("\r\n", "\n").translate(SYMBOLS)
