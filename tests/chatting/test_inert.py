"""Texts of users and models, made inert; the browser's side of it is in test_browser."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tometune.chatting.inert import JOINER, LONGEST, markdown, original, shortened, visible

PIECES = st.lists(
    st.sampled_from(
        [
            "<script>",
            "</script>",
            "<img src=x onerror=1>",
            "![a](http://x)",
            "`",
            "``",
            "```",
            "~~~",
            "```mermaid\n",
            "$$",
            "\n",
            "\n\n",
            " ",
            "a",
        ]
    ),
    max_size=12,
).map("".join)


def kinds(text):
    """The kinds of tokens in CommonMark, with HTML allowed."""
    found = set()
    for token in MarkdownIt("commonmark", {"html": True}).parse(text):
        found |= {token.type} | {child.type for child in token.children or []}
    return found


@given(PIECES)
def test_no_html_and_no_picture_is_left_whatever_is_code(text):
    assert not kinds(markdown(text)) & {"html_block", "html_inline", "image"}
    assert "```mermaid" not in markdown(text)


@given(PIECES)
def test_an_edit_starts_from_what_was_written(text):
    assert original(markdown(text)) == text


def test_code_is_left_as_it_is():
    text = "look:\n\n```html\n<b>bold</b>\n```\n\n    <i>\n\nbut <u>"
    assert markdown(text) == text.replace("<u>", f"<{JOINER}u>")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("\x1b[2J\x07\x00", "␛[2J␇␀"),
        ("\x7f\x9b31m", "␡\N{REPLACEMENT CHARACTER}31m"),
        ("abc\u202edef", "abc\N{REPLACEMENT CHARACTER}def"),
    ],
)
def test_control_characters_are_seen_and_do_nothing(text, shown):
    assert visible(text) == shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", visible(text))


def test_long_messages_are_cut_where_they_are_shown():
    assert shortened("a" * LONGEST) == "a" * LONGEST
    assert len(shortened("a" * 1_000_000)) < LONGEST + 100
    assert "980,000 characters more" in shortened("a" * 1_000_000)
