"""Texts of users and models are made harmless; test_page checks it in a browser."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tometune.chatting.security import JOINER, safe_markdown, show_control_characters

TAGS = ["<script>", "</script>", "<img src=x onerror=1>", "![a](http://x)"]
CODE = ["`", "``", "```", "~~~", "```mermaid\n", "$$", "\n", "\n\n", " ", "a"]


@given(st.lists(st.sampled_from([*TAGS, *CODE]), max_size=12).map("".join))
@example("<script>\n```\n</script>\n```\n<img src=x onerror=1>\n```")  # without the tags, other lines are code
def test_no_html_and_no_image_is_left_and_an_edit_starts_from_the_original(text):
    safe, found = safe_markdown(text), set()
    for token in MarkdownIt("commonmark", {"html": True}).parse(safe):
        found |= {token.type} | {child.type for child in token.children or []}
    assert not found & {"html_block", "html_inline", "image"}
    assert "```mermaid" not in safe
    assert safe.replace(JOINER, "") == text


def test_code_is_left_alone():
    text = "look:\n\n```html\n<b>bold</b>\n```\n\n    <i>\n\nbut <u>"
    assert safe_markdown(text) == text.replace("<u>", f"<{JOINER}u>")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("\x1b[2J\x07\x00", "␛[2J␇␀"),
        ("\x7f\x9b31m", "␡\N{REPLACEMENT CHARACTER}31m"),
        ("abc\u202edef", "abc\N{REPLACEMENT CHARACTER}def"),
    ],
)
def test_control_characters_become_symbols(text, shown):
    assert show_control_characters(text) == shown
