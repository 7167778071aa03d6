"""What Hydra and OmegaConf say, in one line: the full key, what is wrong, the nearest valid name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)
from yaml import MarkedYAMLError, YAMLError

from tometune.common.errors import did_you_mean, nearest
from tometune.config.plugins import missing_plugin
from tometune.config.root import Config

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
"""What composing a config can raise."""

WRONG = {int: "not an integer", float: "not a number", bool: "not true or false", str: "not a text"}
"""What to say of a value that does not fit a plain type."""

TASKS = "eval.tasks"
"""The one node whose keys are the user's own."""


ELSEWHERE = {
    "per_device_train_batch_size": ["trainer.micro_batch", "trainer.conversations_per_step"],
    "gradient_accumulation_steps": ["trainer.tokens_per_step", "trainer.conversations_per_step"],
    "max_seq_length": ["trainer.max_length"],
    "load_in_4bit": ["model.quantization"],
}
"""What other libraries name otherwise."""


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Say that `key` does not exist, and which of the `known` full keys were meant."""
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    if parent == TASKS:
        near = did_you_mean(last, siblings)
        return f"{key}: no such task{near or ';'} to add one: +eval/task@{key}=jsonl {key}.path=FILE"
    namesakes = [name for name in known if name.rpartition(".")[2] == last]
    meant = (
        ELSEWHERE.get(last)
        or [siblings[name] for name in nearest(last, siblings)]
        or nearest(key, namesakes)
        or namesakes[:2]
        or [name for name in known if name == parent and not siblings]  # a key below a plain value
        or [name for name in known if name == key.replace("/", ".")]
        or _nearest_elsewhere(key, known)
    )
    return f"{key}: no such key" + (f"; did you mean {', '.join(meant)}?" if meant else "; --cfg job prints all keys")


def _nearest_elsewhere(key: str, known: Sequence[str]) -> list[str]:
    """Return the full keys whose last part is near that of `key`, the nearest as a whole first.

    Whole keys by themselves would be near wherever they share a long parent.
    """
    last = key.rpartition(".")[2]
    others = [name for name in known if name.startswith("hydra.") == key.startswith("hydra.")]
    lasts = nearest(last, dict.fromkeys(name.rpartition(".")[2] for name in others))
    found = [name for name in others if name.rpartition(".")[2] in lasts]
    return nearest(key, found) or found[:2]


def wrong_value(key: str, value: Any) -> str:
    """Say that `value` does not fit the type of `key`."""
    text = f"{key}={'null' if value is None else value}"
    expected = type_of(key)
    if value is None:
        return f"{text}: may not be null"
    if get_origin(expected) is list:
        return f"{text}: not a list; write {key}=[a,b]"
    if not isinstance(expected, type):
        return f"{text}: not a value of this key"
    if issubclass(expected, Enum):
        names = [member.name for member in expected]
        return f"{text}: one of {', '.join(names)}{did_you_mean(str(value), names)}"
    if is_dataclass(expected):
        return (
            f"{text}: a group of keys, not a value; set one of {', '.join(f'{key}.{f.name}' for f in fields(expected))}"
        )
    return f"{text}: {WRONG.get(expected, 'wrong type')}"


def type_of(key: str) -> Any:
    """Return the type the schema gives to a full key, without its `| None`; None where the key is not in the schema."""
    node: Any = Config
    for part in key.split("."):
        if get_origin(node) is dict:
            node = get_args(node)[1]
        elif is_dataclass(node):
            node = get_type_hints(node).get(part)
        else:
            return None
        options = [option for option in get_args(node) if option is not NoneType]
        if NoneType in get_args(node):
            node = options[0]
    return node


def may_be_null(key: str) -> bool:
    """Whether the schema allows null for a full key."""
    parent, _, last = key.rpartition(".")
    owner = type_of(parent) if parent else Config
    return is_dataclass(owner) and NoneType in get_args(get_type_hints(owner).get(last))


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the full key of every node below `node`, inner ones included."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from flatten(child, f"{prefix}{name}.")


def schema_keys() -> list[str]:
    """Return every full key of the schema."""
    return list(flatten(OmegaConf.to_container(OmegaConf.structured(Config))))


def one_line(error: BaseException) -> str:
    """Return the text of an exception with its line breaks folded."""
    return " ".join(str(error).split())


def explain(error: BaseException, folders: Sequence[Path]) -> str:
    """Put an error of composing the config into one line.

    Args:
        error: what Hydra, OmegaConf or PyYAML raised.
        folders: where YAML files are looked for, to name the file that is wrong.
    """
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            return f"{cause.problem_mark.name}:{cause.problem_mark.line + 1}: not YAML: {cause.problem}"
    where = _file(chain, folders)
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            group, _, option = (cause.missing_cfg_file or "").rpartition("/")
            plugin = missing_plugin(f"{group}={option}")  # chosen by a file of a sweep, not on the command line
            if plugin is not None:
                return plugin
            return f"{group}={option}: no such option{did_you_mean(option, cause.options or [])}"
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return where + _explain_key(cause, cause.full_key)
    return where + (re.sub(r"^In '[^']+': ", "", one_line(error)) or type(error).__name__)


def _explain_key(error: OmegaConfBaseException, key: str) -> str:
    """Put an error of OmegaConf that names a key into one line."""
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return unknown_key(key, schema_keys())
    if isinstance(error, ValidationError) and type_of(key) is not None and error.value is not None:
        return wrong_value(key, error.value)
    text = str(error.msg or error).splitlines()[0]
    if isinstance(error, UnsupportedInterpolationType | InterpolationResolutionError):
        return _explain_reference(error, key, text)
    return f"{key}: {text}"


def _explain_reference(error: OmegaConfBaseException, key: str, text: str) -> str:
    """Put an error about a value with `${…}` into one line."""
    if isinstance(error, InterpolationKeyError) and (found := re.search(r"'(.*)'", text)):
        return f"{key}: holds ${{{found[1]}}}; {unknown_key(found[1], schema_keys())}"
    if found := re.search(r"Environment variable '(.*)' not found", text):
        name = f"oc.env:{found[1]}"
        return f"{key}: holds ${{{name}}}, which is not set; set it, or give a default: ${{{name},…}}"
    return f"{key}: {text}; a reference is ${{KEY}} with the full key of another value, e.g. ${{seed}}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it came from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _file(chain: Sequence[BaseException], folders: Sequence[Path]) -> str:
    """Return `"FILE: "` where Hydra's text names a config (it has no attribute for it), else an empty string."""
    for cause in chain:
        found = re.match(r"In '([^']+)':", str(cause))
        if found:
            name = f"{found[1]}.yaml"
            return f"{next((folder / name for folder in folders if (folder / name).exists()), name)}: "
    return ""
