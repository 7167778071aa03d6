"""Which modules of the standard library are read, which are held out for evaluation, and what identifies them.

Pure-Python modules are read as source text and never imported: importing some opens a browser (`antigravity`), prints
(`this`) or starts a window (`turtledemo`). The modules written in C below have no such effect and are imported.
"""

import functools
import os
import platform
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path

from tometune.common.errors import UserError

VERSION = 1
"""Raised whenever the same library gives other rows or examples."""

HELD_OUT = frozenset(
    (
        *("bisect", "calendar", "cmd", "collections", "copy", "difflib", "fnmatch", "fractions", "glob", "graphlib"),
        *("heapq", "pathlib", "pprint", "random", "sched", "shelve", "shlex", "shutil", "statistics", "string"),
        *("tempfile", "textwrap", "timeit", "zipfile"),
    )
)
"""Top-level modules of the evaluation tasks; nothing of theirs is trained on."""

NATIVE = (
    *("_bisect", "_collections", "_csv", "_functools", "_heapq", "_io", "_json", "_operator", "_random", "_statistics"),
    *("_string", "_struct", "_thread", "_weakref", "array", "atexit", "binascii", "builtins", "cmath", "faulthandler"),
    *("gc", "itertools", "marshal", "math", "select", "sys", "time", "unicodedata"),
)
"""Modules written in C that every build has and whose import does nothing else."""

LEFT_OUT = frozenset(
    (
        *("__phello__", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "msilib"),
        *("antigravity", "pydoc_data", "site-packages", "dist-packages", "test", "tests", "this", "tkinter", "turtle"),
        *("turtledemo", "venv"),
    )
)
"""Tests, bundled copies, tables of characters, and what distributions of Python leave out or change."""

FEWEST = 200
"""Source files that a whole standard library has at least (there are about 400)."""

LANGUAGE = "pydoc_data/topics.py"
"""The language reference as text, where the build has it."""


def public_name(module: str) -> str:
    """Return the name that users know a module by: `_heapq` and `_pydecimal` are the insides of public ones.

    >>> public_name("_heapq"), public_name("_pydecimal"), public_name("_collections_abc"), public_name("json.decoder")
    ('heapq', 'decimal', 'collections.abc', 'json.decoder')
    """
    if module.startswith("_"):
        return module.lstrip("_").removeprefix("py").replace("_abc", ".abc")
    return module


def is_held_out(module: str) -> bool:
    """Tell whether a module, or what is inside of it, belongs to the evaluation tasks."""
    return public_name(module).split(".")[0] in HELD_OUT


def library() -> Path:
    """Return the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


@functools.cache
def source_files() -> tuple[tuple[str, Path], ...]:
    """Return (dotted name, path) of each pure-Python module to read, in the order of the names.

    Raises:
        UserError: this Python came without the sources of its library.
    """
    root = library()
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in LEFT_OUT]  # site-packages can hold a hundred times as many
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] not in LEFT_OUT and parts[0] in sys.stdlib_module_names:
                found.append((".".join(parts).removesuffix(".__init__"), path))
    if len(found) < FEWEST:
        raise UserError(
            f"kind=pydocs: {root} holds {len(found)} of the about 400 source files of Python's standard library; "
            "run with a full installation of Python, or choose data and tasks from files"
        )
    return tuple(sorted(found))


@functools.cache
def fingerprint() -> str:
    """Return what identifies the documentation and what is made of it: Python, its sources, this generator.

    Distributions patch their Python, so the version alone would not do.

    Raises:
        UserError: see `source_files`.
    """
    digest = sha256()
    topics = library() / LANGUAGE
    for name, path in (*source_files(), *([(LANGUAGE, topics)] if topics.is_file() else [])):
        digest.update(f"{name}\0".encode() + sha256(path.read_bytes()).digest())
    python = f"{sys.implementation.name}-{platform.python_version()}"
    return f"{python}-{digest.hexdigest()[:12]}-v{VERSION}"
