"""Markdown in the terminal while it is being written: whole blocks are printed, the last one is drawn anew."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from tometune.chatting.inert import markdown, visible

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
"""What begins and ends a block of code."""


@contextmanager
def printing(console: Console) -> Iterator[Callable[[str, bool], None]]:
    """Give a function that takes the text so far and whether it is whole; where nobody looks, it prints plain text."""
    printed = 0
    if not console.is_terminal:

        def plain(text: str, _whole: bool) -> None:
            """Print what is new."""
            nonlocal printed
            console.print(visible(text[printed:]), end="", markup=False, highlight=False, soft_wrap=True)
            printed = len(text)

        yield plain
        console.print()
        return
    with Live(console=console, transient=True, refresh_per_second=12, vertical_overflow="ellipsis") as live:

        def show(text: str, whole: bool) -> None:
            """Print the blocks that are new, and draw the one that is not whole."""
            nonlocal printed
            end = len(text) if whole else last_block(text)
            if end > printed:
                console.print(_rendered(text[printed:end]))
                printed = end
            live.update(_rendered(text[printed:]))

        yield show


def _rendered(text: str) -> Markdown:
    """Return Markdown with nothing in it that does anything."""
    return Markdown(markdown(text), hyperlinks=False)


def last_block(text: str) -> int:
    """Return where the last block of a text begins: after a blank line that is not inside a block of code."""
    place = begin = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        found = FENCE.match(line)
        if fence:
            fence = "" if found and found[1].startswith(fence) else fence
        elif found:
            fence = found[1]
        place += len(line)
        if not fence and not line.strip():
            begin = place
    return begin
