"""The documentation in Python's standard library: its modules, its text, and every object that has a docstring.

It is read from the Python that runs this.
"""

import ast
import copy
import functools
import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# ---- Modules. Python files are read as text, never imported: importing `antigravity` opens a browser. ----

HELD_OUT = frozenset(
    (
        *("bisect", "calendar", "cmd", "collections", "copy", "difflib", "fnmatch", "fractions", "glob", "graphlib"),
        *("heapq", "pathlib", "pprint", "random", "sched", "shelve", "shlex", "shutil", "statistics", "string"),
        *("tempfile", "textwrap", "timeit", "zipfile"),
    )
)
"""Top-level modules of the evaluation tasks; none of their documentation is trained on."""

NATIVE = (
    *("_bisect", "_collections", "_csv", "_functools", "_heapq", "_io", "_json", "_operator", "_random"),
    *("_statistics", "_string", "_struct", "_thread", "_weakref", "array", "atexit", "binascii", "builtins"),
    *("cmath", "faulthandler", "gc", "itertools", "marshal", "math", "select", "sys", "time", "unicodedata"),
)
"""Modules written in C that every build has and whose import has no side effect."""

LEFT_OUT = frozenset(
    (
        *("__phello__", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "msilib"),
        *("antigravity", "pydoc_data", "site-packages", "dist-packages", "test", "tests", "this", "tkinter"),
        *("turtle", "turtledemo", "venv"),
    )
)
"""Tests, bundled copies, tables of characters, and what distributions of Python leave out or change."""

LIBRARY = Path(sysconfig.get_path("stdlib"))
LANGUAGE = LIBRARY / "pydoc_data" / "topics.py"
"""The language reference as text for `help()`."""


def public_name(module: str) -> str:
    """Return the name that users know a module by.

    >>> public_name("_heapq"), public_name("_pydecimal"), public_name("_collections_abc"), public_name("json.decoder")
    ('heapq', 'decimal', 'collections.abc', 'json.decoder')
    """
    return module.lstrip("_").removeprefix("py").replace("_abc", ".abc") if module.startswith("_") else module


def is_held_out(module: str) -> bool:
    """Return whether a module, or what is inside it, belongs to the evaluation tasks."""
    return public_name(module).split(".")[0] in HELD_OUT


def source_files() -> list[tuple[str, Path]]:
    """Return (dotted name, path) of each Python module to read, in the order of the names."""
    found = []
    for folder, below, files in os.walk(LIBRARY):
        below[:] = [name for name in below if name not in LEFT_OUT]  # site-packages can hold a hundred times as many
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(LIBRARY).with_suffix("").parts
            if parts[-1] not in LEFT_OUT and parts[0] in sys.stdlib_module_names:
                found.append((".".join(parts).removesuffix(".__init__"), path))
    return sorted(found)


# ---- Text: documentation as paragraphs and sentences. ----

MARKUP = re.compile(r"::=|>>>|\.\. \w|^\s*[-=~*+#|]|:\w+ \w+:|@\w+|\b(XXX|TODO|FIXME)\b")
"""Lines that are no prose: grammar, sessions, directives, lists, rules, tables, field lists, notes of authors."""

SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(->.*|--.*)?$|^[\w.]+\([^)]*\)\s*->|->")
"""First line of many docstrings of C functions: how they are called."""

END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'`*(]*[A-Z])")
"""Where a sentence may end."""

ABBREVIATION = re.compile(r"(\b(e\.g|i\.e|etc|vs|cf|resp|approx|Dr|Mr|St|No|Fig|Sec|Inc)\.|\b[A-Z]\.|\.\.\.)$")
"""Where it does not."""


def paragraphs(doc: str) -> list[str]:
    r"""Return the paragraphs of a docstring that are prose, each on one line.

    Code, lists and tables are left out, and so are sentences that introduce them.

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
    """Return the first sentence of a docstring, empty if it is no prose, and the paragraphs of the rest."""
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
    """Return whether a text looks like one whole sentence: a capital, a full stop, balanced brackets."""
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}")) and text.count('"') % 2 == 0
    return balanced and text[:1].isupper() and text.endswith((".", "!")) and not ABBREVIATION.search(text)


def shingles(text: str) -> set[str]:
    """Return the sequences of 13 words of a text, in lower case and without punctuation."""
    found = re.findall(r"\w+", text.lower())
    return {" ".join(found[start : start + 13]) for start in range(len(found) - 12)}


# ---- Entries: every module, class and function that has a docstring. ----


@dataclass(frozen=True)
class Entry:
    """One documented object."""

    module: str
    name: str
    """Inside the module, e.g. `TextWrapper.wrap`; empty for the module itself."""

    kind: str
    """`module`, `class`, `method`, `property`, `function`, or `topic` of the language reference."""

    parameters: tuple[str, ...] | None
    """As written, without annotations and `self`: `text`, `width=70`, `*`, `**kwargs`; None if unknown."""

    doc: str
    code: str = ""
    """Source of a short function without its docstring."""

    summary: str = ""
    """First sentence of the docstring; empty if that is no prose."""

    body: tuple[str, ...] = ()
    """Paragraphs of prose after the summary."""

    twins: tuple[str, ...] = ()
    """Summaries of the same object's other implementation, in C."""

    @property
    def full_name(self) -> str:
        """Name as users write it, e.g. `textwrap.TextWrapper.wrap`."""
        return ".".join(part for part in (public_name(self.module).removeprefix("builtins"), self.name) if part)

    @property
    def call(self) -> str:
        """Full name, with the parameters if they are known."""
        return self.full_name if self.parameters is None else f"{self.full_name}({', '.join(self.parameters)})"

    @property
    def is_public(self) -> bool:
        """Whether no part of the name begins with an underscore."""
        return not any(part.startswith("_") for part in (*self.module.split("."), *self.name.split(".")))


def make_entry(module: str, name: str, kind: str, params: tuple[str, ...] | None, doc: str, code: str = "") -> Entry:
    """Return an entry with its docstring split."""
    summary, body = prose(doc)
    return Entry(module, name, kind, params, doc, code, summary, tuple(body))


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return every entry of the standard library, modules written in C last."""
    found: dict[str, Entry] = {}
    for module, path in source_files():
        for entry in parse(module, path.read_bytes()):
            found.setdefault(entry.full_name, entry)
    for entry in native_entries():
        known = found.setdefault(entry.full_name, entry)
        if known is not entry and entry.summary and entry.summary not in (known.summary, *known.twins):
            found[entry.full_name] = replace(known, twins=(*known.twins, entry.summary))
    return tuple(found.values())


def parse(module: str, source: str | bytes) -> Iterator[Entry]:
    """Yield the entries of one module's source text."""
    tree = ast.parse(source)
    if doc := ast.get_docstring(tree):
        yield make_entry(module, "", "module", None, doc)
    yield from members(module, "", tree.body)


def members(module: str, prefix: str, body: list[ast.stmt]) -> Iterator[Entry]:
    """Yield the entries of classes, methods and functions, but not of what is defined inside functions."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            name = prefix + node.name
            if doc := ast.get_docstring(node):
                own = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
                yield make_entry(module, name, "class", parameters(own[0].args, True) if own else None, doc)
            yield from members(module, f"{name}.", node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
            if node.name.startswith("__"):  # special methods are described by the language reference
                continue
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            is_property = any(name.endswith(("property", ".setter")) for name in decorators)
            kind = ("property" if is_property else "method") if prefix else "function"
            params = None if kind == "property" else parameters(node.args, bool(prefix))
            yield make_entry(module, prefix + node.name, kind, params, doc, short_code(node))


def parameters(arguments: ast.arguments, is_method: bool) -> tuple[str, ...]:
    """Return the parameters as written, without annotations (removed from the tree), `self` and `cls`."""
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    positional = [*arguments.posonlyargs, *arguments.args]
    written = split(ast.unparse(arguments))
    if is_method and positional and positional[0].arg in ("self", "cls", "mcls"):
        written = written[1:]
    return tuple(part for part in written if part != "/")


def split(written: str) -> list[str]:
    """Split parameters at the commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in written:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def short_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the source of a function of up to 14 lines without its docstring."""
    rest = node.body[1:]
    if not rest or (rest[-1].end_lineno or 0) - rest[0].lineno >= 14:
        return ""
    bare = copy.copy(node)
    bare.body = rest
    return ast.unparse(bare)


def native_entries() -> Iterator[Entry]:
    """Yield the entries of the modules written in C, whose docstrings are read by importing them."""
    for name in NATIVE:
        module = importlib.import_module(name)
        yield from native_entry(name, "", "module", module)
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or getattr(value, "__module__", name) not in (name, name.lstrip("_")):
                continue
            if isinstance(value, type) and value.__name__ == key:  # IOError is another name of OSError
                yield from native_entry(name, key, "class", value)
                for method, member in sorted(vars(value).items()):
                    if not method.startswith("_") and callable(member):
                        yield from native_entry(name, f"{key}.{method}", "method", member)
            elif callable(value) and not isinstance(value, type):
                yield from native_entry(name, key, "function", value)


def native_entry(module: str, name: str, kind: str, value: object) -> Iterator[Entry]:
    """Yield the entry of an object if it has a docstring."""
    doc = value.__doc__
    if isinstance(doc, str) and doc.strip():
        signature = getattr(value, "__text_signature__", None) or ""
        written = split(signature[1:-1].replace("$self", "self").replace("$module", "self"))
        params = tuple(part for part in written if part not in ("/", "self", "type", "$type"))
        yield make_entry(module, name, kind, params if signature else None, inspect.cleandoc(doc))


def language_entries() -> Iterator[Entry]:
    """Yield the sections of the language reference, which serve for questions only."""
    for node in ast.parse(LANGUAGE.read_bytes()).body:
        if isinstance(node, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for _, text in sorted(topics.items()):
                # A title is the line above a line of marks.
                pieces = re.split(r"^(.+)\n[*=\-^]{3,}$", text.strip(), flags=re.MULTILINE)
                for title, section in zip(pieces[1::2], pieces[2::2], strict=True):
                    if body := paragraphs(section):
                        yield Entry("", title.strip().replace('"', ""), "topic", None, section, body=tuple(body))
