"""Finds all that is wrong in a command line, one override at a time.

Hydra stops at the first wrong override. This asks the same schema and the same folders about each of them, so that
all mistakes are told at once.
"""

from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from tometune.common.errors import ConfigError, did_you_mean
from tometune.config.checks import check
from tometune.config.command_line import CommandLine, parsed
from tometune.config.lora import settled_lora
from tometune.config.messages import COMPOSITION_ERRORS, TASKS, explain, flatten
from tometune.config.plugins import missing_plugin
from tometune.config.settled import settled
from tometune.config.store import CONFIG_NAME, conf_dir, typed
from tometune.config.values import check_value, deletes_a_setting, is_empty, not_of_the_grammar, several_values


def passes_unseen(texts: Sequence[str]) -> bool:
    """Whether Hydra would carry out one of these overrides without a word, though `find_problems` calls it wrong."""
    return any(deletes_a_setting(override) or is_empty(override) for override in parsed(texts))


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
                problems.append(not_of_the_grammar(text, error))
                continue
            if override.is_sweep_override() and not self.line.multirun:
                problems.append(several_values(override))
                continue
            if override.is_delete() and override.key_or_group in self.groups:
                problems += [self._deletion(override)] if deletes_a_setting(override) else []
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
        found = (check_value(override, config, known) for override in values)
        problems += [problem for problem in found if problem]
        return list(dict.fromkeys(problems)) or (self._check_job(config) if self.line.multirun else [])

    def _check_job(self, config: DictConfig) -> list[str]:
        """Return what the cross-field checks say of one job of a sweep, before Hydra makes the sweep's folder."""
        with open_dict(config):
            del config["hydra"]
        try:
            job = typed(config)
            job.data, job.lora = settled(job.data), settled_lora(job.lora)
            check(job)
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
