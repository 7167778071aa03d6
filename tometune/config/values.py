"""What is wrong with one override that sets, adds or deletes a value, in one line."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any, get_origin

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tometune.config.messages import (
    COMPOSITION_ERRORS,
    TASKS,
    may_be_null,
    one_line,
    type_of,
    unknown_key,
    wrong_value,
)

POOL = "data.pool"
"""The one group node that can be null, and then has no keys to set."""

UNNAMED_ERRORS = (ValueError, AssertionError)
"""What OmegaConf raises where a key goes on below a plain value or a list."""


def check_value(override: Override, config: DictConfig, known: Sequence[str]) -> str | None:
    """Set a value in `config` and return None, or leave it as it was and return what is wrong."""
    key, value = override.key_or_group, override.value()
    if override.is_delete():
        return _check_deletion(override, known)
    if is_empty(override):
        fix = (
            f"leave out tasks one by one, ~{TASKS}.NAME, or choose others, eval=files" if key == TASKS else "name keys"
        )
        return f"{override.input_line}: changes nothing, since a dict is merged into what is there; {fix}"
    if override.package is not None:
        return unknown_key(override.get_key_element(), known)
    present = key in known and OmegaConf.select(config, key, throw_on_missing=False) is not None
    if override.is_add() and present and not isinstance(value, dict | list):
        return f"{override.input_line}: the key is there already; write it without the plus"
    if config.data.pool is None and (key.startswith(POOL + ".") or (key == POOL and value is not None)):
        return f"{key}: {POOL} is null here; choose a mix that has one, e.g. data=mix_200k, files_200k or pydocs_2k"
    force_add = override.is_add() or override.is_force_add()
    if force_add and not override.is_hydra_override() and type_of(key) is None:  # OmegaConf would add any key
        return unknown_key(key, known)
    try:
        OmegaConf.update(deepcopy(config), key, value, merge=True, force_add=force_add)
    except COMPOSITION_ERRORS + UNNAMED_ERRORS as error:
        return _rejected(key, value, known, error)
    OmegaConf.update(config, key, value, merge=True, force_add=force_add)
    return None


def _check_deletion(override: Override, known: Sequence[str]) -> str | None:
    """Return None where a key may be deleted, else what to do in its place."""
    key = override.key_or_group
    if key not in known:
        return unknown_key(key, known)
    if not deletes_a_setting(override):
        return None
    if key.startswith(TASKS):
        fix = f"leave out one task by ~{TASKS}.NAME"
    elif may_be_null(key):
        fix = f"write {key}=null"
    elif is_dataclass(type_of(key)):
        fix = f"set its keys, e.g. {next(name for name in known if name.startswith(f'{key}.'))}=…"
    else:
        fix = f"set it, {key}=…"
    return f"~{key}: only a task can be deleted; {fix}"


def _rejected(key: str, value: Any, known: Sequence[str], error: Exception) -> str:
    """Say why OmegaConf did not take a value; with a dict as the value, the key that is wrong may be inside it."""
    if key.rpartition(".")[0] == TASKS:  # a whole task cannot be given as one value
        return unknown_key(key, known)
    inner = error.full_key if isinstance(error, OmegaConfBaseException) and error.full_key else key
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        of_task = inner.rpartition(".")[0] == TASKS
        return unknown_key(inner if of_task or isinstance(value, dict) else key, known)
    if inner.startswith(f"{key}.") and isinstance(error, OmegaConfBaseException) and type_of(inner):
        return wrong_value(inner, error.value)
    return wrong_value(key, value) if type_of(key) else unknown_key(key, known)


def deletes_a_setting(override: Override) -> bool:
    """Whether something is to go that must be there: anything but one of the tasks, and what is Hydra's own.

    The schema's defaults would stand in for it, and they are not those of `conf/`.
    """
    one_task = override.package is None and override.key_or_group.rpartition(".")[0] == TASKS
    return override.is_delete() and not override.is_hydra_override() and not one_task


def is_empty(override: Override) -> bool:
    """Whether the value is a dict without a key."""
    return override.value() == {} and not override.is_hydra_override()


def several_values(override: Override) -> str:
    """Say that several values need several runs, and what to write where one list or text was meant."""
    text = override.input_line or ""
    key, _, value = text.partition("=")
    hints = {list: f"; for a list write {key}=[{value}]", str: f"; for one text write '{key}=\"{value}\"'"}
    kind = type_of(override.key_or_group)
    return f"{text}: several values need --multirun (-m){hints.get(get_origin(kind) or kind, '')}"


def not_of_the_grammar(text: str, error: HydraException) -> str:
    """Say what is wrong with an override that cannot be parsed."""
    if "=" not in text:
        return f"{text}: not of the form key=value"
    key, _, value = text.partition("=")
    return f"{text}: not a valid value ({one_line(error)}); quote it: '{key}=\"{value}\"'"
