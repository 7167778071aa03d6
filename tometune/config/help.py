"""The text of `tometune VERB --help`: the groups and keys that the verb reads, and its examples, in 80 columns."""

import ast
import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import fill, wrap
from typing import get_type_hints

import yaml

from tometune.config.command_line import READS, reads
from tometune.config.root import CONFIG_NAME, Config, conf_dir

WIDTH = 80

ADDED = {"sweep": "+sweep", "experiment": "+experiment", "eval/task": "+eval/task@eval.tasks.NAME"}
"""How an option is chosen of the groups that have no default."""

WITHOUT_KEYS = {"eval/task": "eval", "experiment": "experiment", "hydra/launcher": "plan"}
"""Groups that are no part of the schema, and the key or group that a verb reads if it has a use for them."""

EXPLAINED = 6  # most keys of a group that are explained one by one


def help_text(verb: str, docstring: str, extra_folder: Path | None = None) -> str:
    """Return the help of a verb, whose docstring has a summary in the first line and then examples.

    The options in `extra_folder`, that of `--config-dir`, are listed, too.
    """
    summary, *examples = docstring.strip().splitlines()
    types = get_type_hints(Config)
    groups: list[str] = []
    keys: list[str] = []
    for name in (*types, *WITHOUT_KEYS):
        whole = WITHOUT_KEYS.get(name, name) in ("experiment", *READS[verb])
        options = _options(name, extra_folder) if whole else []
        if len(options) > 1:
            groups += _entry(f"{ADDED.get(name, name)}=", ", ".join(options))
        below = {entry.name: entry for entry in fields(types[name])} if is_dataclass(types.get(name)) else {}
        if whole and len(below) > EXPLAINED:
            names = [f"{key}.*" if "Config" in str(entry.type) else key for key, entry in below.items()]
            groups += _entry(f"{name}.KEY=", ", ".join(names))
        elif name in types:
            keys += [key for key in ([f"{name}.{key}" for key in below] or [name]) if reads(verb, key)]
    return "\n".join(
        [
            *(fill(f"tometune {verb}: {summary}", WIDTH), "", f"usage: tometune {verb} [group=option …] [key=value …]"),
            *("", "Groups of settings (* is the default option):", *groups),
            *("", "Other settings:", *(line for key in keys for line in _entry(f"{key}=", _meaning(key)))),
            *("", "Examples:", *(f"  {line.strip()}" for line in examples if line)),
            *("", "The YAML files in this folder explain every setting:", f"  {conf_dir()}"),
            "--cfg job prints all of them. With -m, key=a,b makes one run per value.",
            'Tab completes keys and options after: eval "$(tometune -sc install=bash)"',
        ]
    )


def _options(group: str, extra_folder: Path | None) -> list[str]:
    """Return the options of a group; the default has a star."""
    files = [file for folder in (conf_dir(), extra_folder) if folder for file in (folder / group).glob("*.yaml")]
    names = sorted({file.stem for file in files})
    return [f"*{name}" if name == _defaults().get(group) else name for name in names]


@cache
def _defaults() -> dict[str, str]:
    entries = yaml.safe_load((conf_dir() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {name: option for entry in entries if isinstance(entry, dict) for name, option in entry.items()}


def _entry(name: str, text: str) -> list[str]:
    return wrap(f"{name:17} {text}", WIDTH, initial_indent="  ", subsequent_indent=20 * " ", break_on_hyphens=False)


def _meaning(key: str) -> str:
    """Return the first sentence of the docstring of a setting."""
    group, _, name = key.rpartition(".")
    cls = get_type_hints(Config)[group] if group else Config
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    texts = {ast.unparse(a.target): b.value for a, b in pairwise(body) if isinstance(a, ast.AnnAssign)}
    text = re.sub("^For [^:]*: ", "", " ".join(ast.literal_eval(texts[name]).replace("`", "").split()))
    return text[0].upper() + re.split(r"(?<=\.) ", text)[0][1:]
