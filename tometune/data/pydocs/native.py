"""Docstrings of modules written in C, which have no source to read."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from tometune.data.pydocs.modules import NATIVE


@dataclass(frozen=True)
class Native:
    """What one object of a C module says of itself."""

    module: str
    name: str
    """Name inside the module; empty for the module itself."""

    kind: str
    signature: str
    """`__text_signature__`, e.g. `($self, item, /)`; empty where it has none."""

    doc: str


def native_docs() -> Iterator[Native]:
    """Yield the documented objects of the modules in `NATIVE`, in the order of their names."""
    for name in NATIVE:
        module = importlib.import_module(name)
        yield from _module(name, module)


def _module(name: str, module: ModuleType) -> Iterator[Native]:
    """Yield a module, its functions, its classes and their methods."""
    if module.__doc__:
        yield Native(name, "", "module", "", module.__doc__)
    for key, value in sorted(vars(module).items()):
        if key.startswith("_") or getattr(value, "__module__", name) not in (name, name.lstrip("_")):
            continue
        if isinstance(value, type):
            if value.__name__ == key:  # IOError is OSError by another name
                yield from _class(name, key, value)
        elif callable(value):
            yield from _described(name, key, "function", value)


def _class(module: str, name: str, value: type) -> Iterator[Native]:
    """Yield a class and its own methods; special methods all say the same."""
    yield from _described(module, name, "class", value)
    for key, member in sorted(vars(value).items()):
        if not key.startswith("_") and callable(member):
            yield from _described(module, f"{name}.{key}", "method", member)


def _described(module: str, name: str, kind: str, value: object) -> Iterator[Native]:
    """Yield an object if it has a docstring."""
    doc = value.__doc__
    if isinstance(doc, str) and doc.strip():
        yield Native(module, name, kind, getattr(value, "__text_signature__", None) or "", doc)
