"""What is typed: lines with a history of them, or several between triple quotes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

SEVERAL = '"""'
"""Begins and ends a question of several lines."""


def lines(history: Path) -> Iterator[str]:
    """Yield what is typed or piped in; ends with Ctrl-D.

    At a prompt, Ctrl-C gives up the line and begins another one, as in a shell.

    Args:
        history: the file that keeps the lines of a person.
    """
    if not sys.stdin.isatty():
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                yield from _line("", "")
        return
    with _remembered(history), contextlib.suppress(EOFError):
        while True:
            try:
                found = list(_line("> ", "… "))
            except KeyboardInterrupt:
                print()
                continue
            yield from found


def _line(prompt: str, more: str) -> Iterator[str]:
    """Yield one line, or several as one; nothing where nothing is typed.

    Raises:
        EOFError: there is no more.
    """
    line = input(prompt)
    if line.startswith(SEVERAL):
        rest = [line.removeprefix(SEVERAL)]
        while not rest[-1].rstrip().endswith(SEVERAL):
            rest.append(input(more))
        line = "\n".join(rest).rstrip().removesuffix(SEVERAL)
    if line.strip():
        yield line


@contextlib.contextmanager
def _remembered(file: Path) -> Iterator[None]:
    """Let the arrow keys bring back earlier lines, of earlier times too; only the user may read the file."""
    try:
        import readline
    except ImportError:  # Windows has its own
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.write_history_file(file)
