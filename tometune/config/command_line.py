"""Reads the command line of a verb, and rejects overrides that Hydra would accept without doing what they say."""

import argparse
import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import get_type_hints

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser  # the parser of hydra.main; there is no public name for it
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from tometune.common.errors import ConfigError, UserError
from tometune.config.root import CONFIG_NAME, Config, conf_dir

OWN_KEYS = ("data.pool.weights", "data.pool.caps")
"""Dicts whose keys are names in the user's data."""


@dataclass
class CommandLine:
    """The arguments after the verb."""

    overrides: list[str]
    """`key=value`, `group=option`, with or without a plus or tilde."""

    multirun: bool = False
    """Whether `--multirun` was given."""

    extra_folder: Path | None = None
    """A folder of YAML files that is searched in addition to `conf/` (`--config-dir`)."""

    options: argparse.Namespace | None = None
    """Hydra's options, e.g. `--cfg job`."""

    @property
    def only_shows(self) -> bool:
        """Whether nothing is run: `--help`, `--cfg job` and the like."""
        given = self.options
        return given is not None and any((given.help, given.hydra_help, given.cfg, given.info, given.shell_completion))

    @property
    def folders(self) -> list[Path]:
        """The folders of YAML files."""
        return [conf_dir()] if self.extra_folder is None else [conf_dir(), self.extra_folder]

    @property
    def all_overrides(self) -> list[str]:
        """The overrides, with the one that adds `extra_folder` to Hydra's search path."""
        extra = [] if self.extra_folder is None else [f"hydra.searchpath=['file://{self.extra_folder}']"]
        return [*extra, *self.overrides]


def read_command_line(arguments: Sequence[str] | None = None) -> CommandLine:
    """Read the arguments of this process, or those given.

    Raises:
        UserError: an option is not one of Hydra's, or an override would have no effect.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            options = get_args_parser().parse_args(arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        fix = "keys are set without dashes, as key=value; options like -m go before or after all keys"
        raise UserError(f"{reason}; {fix}") from None
    if options.experimental_rerun is not None:
        raise UserError("--experimental-rerun: reads a pickle, which can run any code; give the overrides instead")
    if options.config_name is not None or options.config_path is not None:
        raise UserError("--config-name, --config-path: all verbs read train.yaml; add a folder with --config-dir=…")
    folder = Path(options.config_dir).resolve() if options.config_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir={options.config_dir}: no such folder")
    overrides = with_plus(options.overrides)
    if problems := [*_without_effect(overrides)]:
        raise ConfigError(problems)
    return CommandLine(overrides, options.multirun, folder, options)


def parse(texts: Iterable[str]) -> Iterator[Override]:
    """Yield the overrides that have a valid form; Hydra reports the others."""
    parser = OverridesParser.create()
    for text in texts:
        with contextlib.suppress(HydraException):
            yield parser.parse_override(text)


def show(hydra: Hydra, line: CommandLine) -> None:
    """Print what `--help`, `--cfg` and the like ask for."""
    options = line.options
    assert options is not None
    if options.help or options.hydra_help:
        printer = hydra.app_help if options.help else hydra.hydra_help
        options.overrides = line.all_overrides
        printer(config_name=CONFIG_NAME, args_parser=get_args_parser(), args=options)
    elif options.cfg:
        hydra.show_cfg(CONFIG_NAME, line.all_overrides, options.cfg, options.package, options.resolve)
    elif options.info:
        hydra.show_info(options.info, CONFIG_NAME, line.all_overrides)
    else:
        hydra.shell_completion(CONFIG_NAME, line.all_overrides)


def _without_effect(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each override that Hydra accepts, but that does not do what it says."""
    for override in parse(overrides):
        text, key = override.input_line, override.key_or_group
        if override.is_hydra_override():
            continue
        if override.is_delete():  # the schema's defaults would take its place, which are not those of conf/
            if not re.fullmatch(r"eval\.tasks\.[^.]+", key) and override.package is None:
                yield f"{text}: only a task can be deleted, ~eval.tasks.NAME; set {key} to another value"
        elif override.value() is None and is_dataclass(get_type_hints(Config).get(key)):
            yield f"{text}: choose an option of this group, {key}=OPTION (--help lists them)"
        elif override.value() == {}:
            yield f"{text}: an empty dict changes nothing; name the keys to change, or delete a task: ~eval.tasks.NAME"


def with_plus(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the pluses with which Hydra accepts a new key in a dict whose keys are the user's own.

    `data.pool.weights.NAME=0.5` becomes `++data.pool.weights.NAME=0.5`, and with a name that holds dots
    or slashes `++data.pool.weights={NAME: 0.5}`: dots would make it nested, and a key with slashes is a group.
    """
    pattern = re.compile(rf"\+{{0,2}}({'|'.join(map(re.escape, OWN_KEYS))})(?:\.([^=]+))?=(.*)", re.DOTALL)
    changed = []
    for argument in arguments:
        if found := pattern.fullmatch(argument):
            key, name, value = found.groups()
            if name is not None:
                nested = f"{key}={{{name}: {value}}}"
                argument = f"++{key}.{name}={value}" if re.fullmatch(r"[\w-]+", name) else f"++{nested}"
            elif value.strip("{} "):
                argument = f"++{argument.lstrip('+')}"
        changed.append(argument)
    return changed
