"""The language reference, which comes with Python as text for `help()`."""

import ast
import re
from collections.abc import Iterator

from tometune.data.pydocs.entries import Entry
from tometune.data.pydocs.modules import LANGUAGE, library
from tometune.data.pydocs.text import paragraphs

UNDERLINE = re.compile(r"^(.+)\n[*=\-^]{3,}$", re.MULTILINE)


def language_entries() -> Iterator[Entry]:
    """Yield the sections of the language reference, for questions alone; none where the build left the file out."""
    path = library() / LANGUAGE
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for _, text in sorted(topics.items()):
                yield from _sections(text)


def _sections(text: str) -> Iterator[Entry]:
    """Yield the sections of a topic; a title is the line above a line of marks."""
    pieces = UNDERLINE.split(text.strip())
    for title, section in zip(pieces[1::2], pieces[2::2], strict=True):
        body = paragraphs(section)
        if body:
            yield Entry("", title.strip().replace('"', ""), "topic", None, section, body=tuple(body))
