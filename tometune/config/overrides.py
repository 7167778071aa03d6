"""Finds all that is wrong in a command line, one override at a time.

Hydra stops at the first wrong override. This asks the same schema and the same folders about each of them, so that
all mistakes are told at once.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tometune.config.checks import check
from tometune.config.errors import ConfigError, did_you_mean
from tometune.config.messages import (
    COMPOSITION_ERRORS,
    TASKS,
    explain,
    flatten,
    may_be_null,
    one_line,
    type_of,
    unknown_key,
    wrong_value,
)
from tometune.config.plugins import missing_plugin
from tometune.config.store import CONFIG_NAME, conf_dir, typed

POOL = "data.pool"
"""The one group node that can be null, and then has no keys to set."""

UNNAMED_ERRORS = (ValueError, AssertionError)
"""What OmegaConf raises where a key goes on below a plain value or a list."""


@dataclass
class CommandLine:
    """What was typed after the verb."""

    overrides: list[str]
    """`key=value`, `group=option`, with or without a plus or tilde."""

    multirun: bool = False
    """Whether there are several runs, so that an override may have several values."""

    extra_folder: Path | None = None
    """A folder of YAML files searched beside `conf/` (`--config-dir`)."""

    only_shows: bool = False
    """Whether nothing is run: `--help`, `--cfg job` and the like."""

    @property
    def folders(self) -> list[Path]:
        """Where YAML files are looked for."""
        return [conf_dir()] if self.extra_folder is None else [conf_dir(), self.extra_folder]

    @property
    def search_path(self) -> list[str]:
        """The overrides that tell Hydra where to look."""
        if self.extra_folder is not None:
            return [f"hydra.searchpath=['file://{self.extra_folder}']"]
        return [text for text in self.overrides if text.startswith("hydra.searchpath=")]


def passes_unseen(texts: Sequence[str]) -> bool:
    """Whether Hydra would carry out one of these overrides without a word, though `find_problems` calls it wrong."""
    parser = OverridesParser.create()
    try:
        overrides = parser.parse_overrides(list(texts))
    except HydraException:
        return False  # it says that itself
    return any(_deletes_a_setting(override) or _is_empty(override) for override in overrides)


def find_problems(line: CommandLine) -> list[str]:
    """Return one line for each wrong override; none where every one of them is right by itself."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            return _Examination(line, GlobalHydra.instance().config_loader()).problems()
        except COMPOSITION_ERRORS as error:
            return [explain(error, line.folders)]


class _Examination:
    """The checks of one command line, against the loader's groups and the composed config."""

    def __init__(self, line: CommandLine, loader: ConfigLoader) -> None:
        """Compose the config without any override: its choices and keys are what can be overridden."""
        self.line = line
        self.loader = loader
        self.parser = OverridesParser.create(config_loader=loader)
        plain = compose(CONFIG_NAME, overrides=line.search_path, return_hydra_config=True)
        self.chosen = list(plain.hydra.runtime.choices)
        self.groups = [*self._groups()]

    def problems(self) -> list[str]:
        """Check each override: its grammar, then the groups, then the values in the config that the groups give."""
        problems: list[str] = []
        groups: list[str] = []
        values: list[Override] = []
        for text in self.line.overrides:
            try:
                override = self.parser.parse_override(text)
            except HydraException as error:
                problems.append(_grammar(text, error))
                continue
            if override.is_sweep_override() and not self.line.multirun:
                problems.append(_several_values(override))
                continue
            if override.is_delete() and override.key_or_group in self.groups:
                problems += [self._deletion(override)] if _deletes_a_setting(override) else []
                continue
            alternatives = self._alternatives(override)
            if not self._is_group(override):
                values += alternatives
                continue
            wrong = [problem for choice in alternatives for problem in self._check_group(choice)]
            problems += wrong
            groups += [] if wrong else [choice.input_line or text for choice in alternatives[:1]]
        try:
            config = compose(CONFIG_NAME, overrides=[*self.line.search_path, *groups], return_hydra_config=True)
        except COMPOSITION_ERRORS as error:
            return [*problems, explain(error, self.line.folders)]
        known = list(dict.fromkeys([*flatten(OmegaConf.to_container(config)), *self.groups]))
        found = (_check_value(override, config, known) for override in values)
        problems += [problem for problem in found if problem]
        return list(dict.fromkeys(problems)) or (self._check_job(config) if self.line.multirun else [])

    def _check_job(self, config: DictConfig) -> list[str]:
        """Return what the cross-field checks say of one job of a sweep, before Hydra makes the sweep's folder."""
        with open_dict(config):
            del config["hydra"]
        try:
            check(typed(config))
        except ConfigError as error:
            return error.problems
        return []

    def _alternatives(self, override: Override) -> list[Override]:
        """Return one override for each value of a sweep, and any other override by itself."""
        if not override.is_sweep_override():
            return [override]
        if not override.is_discrete_sweep():
            return []  # an interval has no values to look at
        override.config_loader = self.loader
        key = override.get_key_element()
        return [self.parser.parse_override(f"{key}={value}") for value in override.sweep_string_iterator()]

    def _deletion(self, override: Override) -> str:
        """Say what to do where a choice is to be deleted."""
        group = override.key_or_group
        text = override.input_line
        if group == "eval/task":
            return f"{text}: leave the task out by its name, ~{override.package or f'{TASKS}.NAME'}"
        if group not in self.chosen:
            return f"{text}: {group} is not chosen by default; leave out the +{group}=… that adds it"
        options = ", ".join(sorted(self._options(group, ObjectType.CONFIG)))
        return f"{text}: every run needs one; choose another, {group}=OPTION (options: {options})"

    def _groups(self, parent: str = "") -> Iterator[str]:
        """Yield every group, nested ones included."""
        for name in self._options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            yield group
            yield from self._groups(group)

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        """Return what lies in a group: its options, or the groups in it."""
        return self.loader.get_group_options(group, kind, overrides=self.line.search_path)

    def _is_group(self, override: Override) -> bool:
        """Whether the override chooses an option rather than sets a value."""
        return override.key_or_group in self.groups and not isinstance(override.value(), dict)

    def _check_group(self, override: Override) -> Iterator[str]:
        """Yield what is wrong with a choice: an option that is not there, a plus too few or too many."""
        text, group = override.input_line, override.key_or_group
        key = override.get_key_element().lstrip("+~")
        options = sorted(self._options(group, ObjectType.CONFIG))
        value = override.value()
        for option in value if isinstance(value, list) else [value]:
            plugin = missing_plugin(f"{key}={option}")
            if plugin is not None:
                yield plugin
            elif option not in options:
                near = did_you_mean(str(option), options)
                if group == "model" and "/" in str(option):
                    near = f"; for a hub id or a folder write model.id={option}"
                yield f"{text}: no such option{near} (options: {', '.join(options)})"
        if override.is_add() and key in self.chosen:
            yield f"{text}: {key} has a choice already; write {key}={value}"
        elif group == "eval/task" and override.package is None:
            yield f"{text}: a task needs a name; write +eval/task@{TASKS}.NAME={value}"
        elif not override.is_add() and key not in self.chosen:
            yield f"{text}: {key} is not chosen by default; add it with a plus: +{key}={value}"


def _check_value(override: Override, config: DictConfig, known: Sequence[str]) -> str | None:
    """Set a value in `config` and return None, or leave it as it was and return what is wrong."""
    key, value = override.key_or_group, override.value()
    if override.is_delete():
        return _check_deletion(override, known)
    if _is_empty(override):
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


def _deletes_a_setting(override: Override) -> bool:
    """Whether something is to go that must be there: anything but one of the tasks, and what is Hydra's own.

    The schema's defaults would stand in for it, and they are not those of `conf/`.
    """
    one_task = override.package is None and override.key_or_group.rpartition(".")[0] == TASKS
    return override.is_delete() and not override.is_hydra_override() and not one_task


def _is_empty(override: Override) -> bool:
    """Whether the value is a dict without a key."""
    return override.value() == {} and not override.is_hydra_override()


def _check_deletion(override: Override, known: Sequence[str]) -> str | None:
    """Return None where a key may be deleted, else what to do in its place."""
    key = override.key_or_group
    if key not in known:
        return unknown_key(key, known)
    if not _deletes_a_setting(override):
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


def _several_values(override: Override) -> str:
    """Say that several values need several runs, and what to write where one list or text was meant."""
    text = override.input_line or ""
    key, _, value = text.partition("=")
    hints = {list: f"; for a list write {key}=[{value}]", str: f"; for one text write '{key}=\"{value}\"'"}
    kind = type_of(override.key_or_group)
    return f"{text}: several values need --multirun (-m){hints.get(get_origin(kind) or kind, '')}"


def _grammar(text: str, error: HydraException) -> str:
    """Say what is wrong with an override that cannot be parsed."""
    if "=" not in text:
        return f"{text}: not of the form key=value"
    key, _, value = text.partition("=")
    return f"{text}: not a valid value ({one_line(error)}); quote it: '{key}=\"{value}\"'"
