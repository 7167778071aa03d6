"""Text made inert: what a model or a user wrote is shown, and never does anything.

On the page there are three walls: what is here, the sanitiser of Gradio's Markdown, and the page's content security
policy (`serving`), under which the browser asks no other host for anything.
"""

import re

JOINER = "\N{WORD JOINER}"
"""Invisible, and no part of a tag's name."""

TAG = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
"""What begins a tag, or a picture, which a browser would fetch."""

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of writing."""

LONGEST = 20_000
"""Characters of one message that the page shows."""


def markdown(text: str) -> str:
    """Return Markdown whose tags and pictures are text; code is left as it is, for Markdown escapes it."""
    lines, fence = [], ""
    for line in visible(text).split("\n"):
        found = FENCE.match(line)
        if fence:
            fence = "" if found and found[1].startswith(fence) and not line.strip(" `~") else fence
            lines.append(line)
        elif found:
            fence = found[1]
            lines.append(line)
        else:
            lines.append(_outside(line))
    return "\n".join(lines)


def _outside(line: str) -> str:
    """Return a line that is not in a block of code."""
    parts, place = [], 0
    for found in CODE.finditer(line):
        parts += [_apart(line[place : found.start()]), found.group()]
        place = found.end()
    return "".join([*parts, _apart(line[place:])])


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
