"""Documentation as plain prose: paragraphs, sentences, summaries."""

import re

MARKUP = re.compile(r"::=|>>>|\.\. \w|^\s*[-=~*+#|]|:\w+ \w+:|@\w+|\b(XXX|TODO|FIXME)\b")
"""Lines that are no prose: grammar, sessions, directives, lists, rules, tables, field lists, notes of authors."""

SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(->.*|--.*)?$|^[\w.]+\([^)]*\)\s*->|->")
"""First line of many docstrings of C functions: how they are called."""

END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'`*(]*[A-Z])")
"""Where a sentence may end."""

ABBREVIATION = re.compile(r"(\b(e\.g|i\.e|etc|vs|cf|resp|approx|Dr|Mr|St|No|Fig|Sec|Inc)\.|\b[A-Z]\.|\.\.\.)$")
"""Where one does not."""


def paragraphs(doc: str) -> list[str]:
    r"""Return the paragraphs of a clean docstring that are prose, each on one line.

    Code, lists and tables are left out, and so are sentences that lead to them.

    >>> paragraphs("One\ntwo. See:\n\n    code()\n\nThree.")
    ['One two.', 'Three.']
    """
    found = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        lines = block.split("\n")
        if not any(line[:1].isspace() or MARKUP.search(line) for line in lines):
            text = " ".join(" ".join(lines).split())
            found.append(" ".join(sentences(text)[:-1]) if text.endswith(":") else text)
    return [text for text in found if text]


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph.

    >>> sentences("Like f(), e.g. The x. It returns y.")
    ['Like f(), e.g. The x.', 'It returns y.']
    """
    found: list[str] = []
    start = 0
    for match in END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph[start : match.start()]):
            found.append(paragraph[start : match.end()].strip())
            start = match.end()
    return [*found, paragraph[start:].strip()]


def prose(doc: str) -> tuple[str, list[str]]:
    """Return the summary of a clean docstring, its first sentence, and the paragraphs of the rest.

    The summary is empty where the docstring does not begin with prose.
    """
    head, _, rest = doc.strip().partition("\n")
    if SIGNATURE.search(head):
        return prose(rest) if rest.strip() else ("", [])
    first = re.split(r"\n\s*\n", doc.strip())[0]
    body = paragraphs(doc)
    if not body or not first.startswith(body[0].split()[0]) or len(paragraphs(first)) != 1:
        return "", body
    summary, *others = sentences(body[0])
    return summary, [*([" ".join(others)] if others else []), *body[1:]]


def words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def is_sentence(text: str) -> bool:
    """Tell whether a text looks like one whole sentence: a capital, a full stop, balanced brackets."""
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}")) and text.count('"') % 2 == 0
    return balanced and text[:1].isupper() and text.endswith((".", "!")) and not ABBREVIATION.search(text)


def plain_share(text: str) -> float:
    """Return the share of words that are ordinary ones: letters, maybe a mark behind."""
    parts = text.split()
    return sum(re.fullmatch(r"[A-Za-z][a-z'-]*[,.;:!?]?", part) is not None for part in parts) / max(1, len(parts))


def shingles(text: str, size: int = 13) -> set[str]:
    """Return the runs of `size` words of a text, in lower case and without punctuation.

    Thirteen is the usual length by which training text is said to contain a test (Brown et al. 2020,
    arXiv:2005.14165, appendix C).
    """
    found = re.findall(r"\w+", text.lower())
    return {" ".join(found[start : start + size]) for start in range(len(found) - size + 1)}
