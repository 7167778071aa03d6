"""Entries: each module, class and function that has a docstring, read from source text without importing it."""

import ast
import copy
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field

from tometune.data.pydocs.modules import is_held_out, public_name, source_files
from tometune.data.pydocs.native import Native, native_docs
from tometune.data.pydocs.signatures import constructor, parameters, split
from tometune.data.pydocs.text import prose

LONGEST_CODE = 14
"""Lines of a function whose code is shown."""


@dataclass(frozen=True)
class Entry:
    """One documented thing."""

    module: str
    """Dotted name of the module it is defined in."""

    name: str
    """Name inside the module, e.g. `TextWrapper.wrap`; empty for the module itself."""

    kind: str
    """`module`, `class`, `method`, `property` or `function`."""

    parameters: tuple[str, ...] | None
    """As written, without annotations and `self`: `text`, `width=70`, `*`, `**kwargs`; None where nothing says."""

    doc: str
    """The docstring without common indentation."""

    code: str = ""
    """Source of a short function without its docstring."""

    summary: str = ""
    """First sentence of the docstring; empty where that is no prose."""

    body: tuple[str, ...] = ()
    """Paragraphs of prose after the summary."""

    twins: tuple[str, ...] = field(default=())
    """Summaries of the same thing's other implementation, in C."""

    @property
    def full_name(self) -> str:
        """Name as users write it, e.g. `textwrap.TextWrapper.wrap`."""
        parts = (public_name(self.module).removeprefix("builtins"), self.name)
        return ".".join(part for part in parts if part)

    @property
    def call(self) -> str:
        """Full name, with the parameters where they are known."""
        return self.full_name if self.parameters is None else f"{self.full_name}({', '.join(self.parameters)})"

    @property
    def is_public(self) -> bool:
        """Whether no part of the name begins with an underscore."""
        return not any(part.startswith("_") for part in (*self.module.split("."), *self.name.split(".")) if part)


@functools.cache
def entries(held_out_only: bool = False) -> tuple[Entry, ...]:
    """Return every entry of the standard library, modules written in C last.

    Args:
        held_out_only: leave out, unread, what is not of a held-out module (which takes 1/20 of the time).

    Raises:
        UserError: this Python came without the sources of its library.
    """
    found: dict[str, Entry] = {}
    for module, path in source_files():
        if held_out_only and not is_held_out(module):
            continue
        for entry in parse(module, path.read_bytes()):
            found.setdefault(entry.full_name, entry)
    for native in native_docs():
        if held_out_only and not is_held_out(native.module):
            continue
        entry = _from_native(native)
        known = found.get(entry.full_name)
        if known is None:
            found[entry.full_name] = entry
        elif entry.summary and entry.summary not in (known.summary, *known.twins):
            found[entry.full_name] = Entry(**{**vars(known), "twins": (*known.twins, entry.summary)})
    return tuple(found.values())


def parse(module: str, source: str | bytes) -> Iterator[Entry]:
    """Yield the entries of one module's source text."""
    tree = ast.parse(source)
    if doc := ast.get_docstring(tree):
        yield _entry(module, "", "module", None, doc)
    yield from _members(module, "", tree.body)


def _members(module: str, prefix: str, body: list[ast.stmt]) -> Iterator[Entry]:
    """Yield the entries of classes and functions, methods included; what is inside functions is nobody's to call."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            name = prefix + node.name
            if doc := ast.get_docstring(node):
                yield _entry(module, name, "class", constructor(node), doc)
            yield from _members(module, f"{name}.", node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
            if node.name.startswith("__"):  # what these do, the language says
                continue
            kind = _kind(node, prefix)
            params = None if kind == "property" else parameters(node.args, bool(prefix))
            yield _entry(module, prefix + node.name, kind, params, doc, _code(node))


def _kind(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> str:
    """Return what a `def` makes: inside a class a property or a method, else a function."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if prefix and any(name.endswith(("property", ".setter")) for name in decorators):
        return "property"
    return "method" if prefix else "function"


def _entry(module: str, name: str, kind: str, params: tuple[str, ...] | None, doc: str, code: str = "") -> Entry:
    """Make an entry and split its docstring."""
    summary, body = prose(doc)
    return Entry(module, name, kind, params, doc, code, summary, tuple(body))


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the source of a short function without its docstring."""
    rest = node.body[1:]
    if not rest or (rest[-1].end_lineno or 0) - rest[0].lineno >= LONGEST_CODE:
        return ""
    bare = copy.copy(node)
    bare.body = rest
    return ast.unparse(bare)


def _from_native(native: Native) -> Entry:
    """Make an entry of what a C module says of itself."""
    written = split(native.signature[1:-1].replace("$self", "self").replace("$module", "self"))
    params = tuple(part for part in written if part not in ("/", "self", "type", "$type"))
    return _entry(
        native.module, native.name, native.kind, params if native.signature else None, inspect.cleandoc(native.doc)
    )
