"""`tometune VERB …`, the same as `python -m tometune.VERB …`."""

import ast
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

import tometune
from tometune.common.errors import did_you_mean

USAGE = "usage: tometune VERB [group=option …] [key=value …]"


def main() -> None:
    """Run the verb that the first argument names, or list the verbs."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview())
    elif name == "--version":
        print(f"tometune {tometune.__version__}")
    elif name in ("--shell-completion", "-sc"):
        complete(rest)
    elif name in verbs():
        sys.argv = [f"tometune {name}", *rest]
        command: Callable[[], None] = importlib.import_module(f"tometune.{name}").main
        command()
    else:
        near = did_you_mean(name, verbs()) or f"; one of {', '.join(verbs())}"
        print(f"{name}: no such verb{near}", file=sys.stderr)
        sys.exit(2)


def complete(arguments: list[str]) -> None:
    """Install or answer Hydra's shell completion, which knows no verbs: `-sc install=bash`, `-sc query=bash`.

    A query completes the line in the environment variable COMP_LINE.
    """
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[:1] and arguments[0].startswith("query="):
        if len(words) < 2:
            print(*verbs())
            return
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    sys.argv = [sys.argv[0], "-sc", *arguments]
    importlib.import_module("tometune.train").main()


def overview() -> str:
    """Return the text of `tometune --help`."""
    found = verbs()
    width = max(map(len, found), default=0)
    lines = [fill(f"  {name:{width}}  {line}", 80, subsequent_indent=" " * (width + 4)) for name, line in found.items()]
    return "\n".join([str(tometune.__doc__), "", USAGE, "", *lines, "", "Run `tometune VERB --help` for details."])


def verbs() -> dict[str, str]:
    """Return the first line of the docstring of each verb: a module next to this one that has a `main()`.

    The sources are parsed, not imported, so that nothing heavy is loaded to list them.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


if __name__ == "__main__":
    main()
