"""Reads the command line of a verb; rejects overrides that do nothing, and keys that only other verbs read.

Unknown keys and wrong values are Hydra's errors; `error_messages` turns them into one line.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser  # the parser of hydra.main; there is no public name for it
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from tometune.common.distributed import is_first
from tometune.common.errors import ConfigError, UserError
from tometune.config.aliases import answers
from tometune.config.root import CONFIG_NAME, Config

OWN_KEYS = ("data.pool.weights", "data.pool.caps", "data.base.columns", "data.pool.columns")
"""Dicts whose keys are names in the user's data."""

WITH_COMPARISONS = ("report.primary", "require")  # keys whose values hold `>`, which Hydra reads only between quotes
MAKES_A_RUN = ("model", "data", "lora", "trainer", "eval", "tracking", "sweep", "report", "seed", "seeds", "paths")
"""`prepare` takes the command line of `train`: it checks all of it, and builds what `train` would train on."""

READS = {
    "train": (*MAKES_A_RUN, "plan"),
    "prepare": MAKES_A_RUN,
    "evaluate": ("model", "eval", "tracking", "seed", "seeds.generation", "paths", "run"),
    "report": (
        *("eval.resamples", "eval.confidence", "tracking", "sweep", "report", "paths", "run", "runs", "publish"),
        "require",
    ),
    "export": ("export", "paths", "run", "format", "quant", "push_to", "private"),
    "doctor": ("tracking", "paths"),
    "chat": ("model", "chat", "seed", "seeds.generation", "paths", "run", "against", "gguf", "ui", "share"),
}
"""Groups and keys by verb. A key stands for everything below it."""

GROUPS = ("model", "data", "lora", "trainer", "eval", "tracking", "chat", "export")
"""Groups of `conf/` whose options only set values. An option of `sweep` also decides how many runs there are."""


@dataclass
class CommandLine:
    """The arguments after the verb."""

    overrides: list[str]  # `key=value`, `group=option`; first the one that adds `extra_folder` to Hydra's search path
    multirun: bool = False
    extra_folder: Path | None = None  # of `--config-dir`, searched for YAML files in addition to `conf/`
    options: argparse.Namespace | None = None  # Hydra's options if nothing is run: `--help`, `--cfg job` and the like


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
    overrides = [quoted(text) for text in with_plus(options.overrides)]
    if folder is not None:
        overrides = [f"hydra.searchpath=['file://{folder}']", *overrides]
    if options.help:
        return CommandLine([], options.multirun, folder, options)
    if problems := [*answers(options.overrides, folder), *_without_effect(overrides)]:
        raise ConfigError(problems)
    shows = any((options.help, options.hydra_help, options.cfg, options.info, options.shell_completion))
    return CommandLine(overrides, options.multirun, folder, options if shows else None)


def parse(texts: Iterable[str]) -> Iterator[Override]:
    """Yield the overrides that have a valid form; Hydra reports the others."""
    parser = OverridesParser.create()
    for text in texts:
        with contextlib.suppress(HydraException):
            yield parser.parse_override(text)


def show(hydra: Hydra, line: CommandLine) -> None:
    """Print what `--cfg`, `--hydra-help` and the like ask for."""
    options = line.options
    assert options is not None
    if options.hydra_help:
        options.overrides = line.overrides
        hydra.hydra_help(config_name=CONFIG_NAME, args_parser=get_args_parser(), args=options)
    elif options.cfg:
        hydra.show_cfg(CONFIG_NAME, line.overrides, options.cfg, options.package, options.resolve)
    elif options.info:
        hydra.show_info(options.info, CONFIG_NAME, line.overrides)
    else:
        hydra.shell_completion(CONFIG_NAME, line.overrides)


def _without_effect(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each override that Hydra accepts although it does not do what it says."""
    for override in parse(overrides):
        text, key = override.input_line, override.key_or_group
        if override.is_hydra_override() and key != "hydra":
            continue
        if override.is_delete():  # the value would fall back to the schema's default, not to that of conf/
            if not re.fullmatch(r"eval\.tasks\.[^.]+", key) and override.package is None:
                yield f"{text}: only a task can be deleted, ~eval.tasks.NAME; set {key} to another value"
        elif isinstance(override.value(), int | float | list | None) and (
            key == "hydra" or is_dataclass(get_type_hints(Config).get(key))
        ):
            choose = f"choose an option of this group, {key}=OPTION (--help lists them)"
            seed = "; one seed for all random choices: seed=NUMBER" if key == "seeds" else ""
            values = f"a group of keys, not a value; set {key}.KEY=VALUE{seed}"
            yield f"{text}: {choose if key in GROUPS else values}"
        elif override.value() == {}:
            yield f"{text}: an empty dict changes nothing; name the keys to change, or delete a task: ~eval.tasks.NAME"


def with_plus(arguments: Sequence[str]) -> list[str]:
    """Put `++` before overrides of `OWN_KEYS`: without it Hydra accepts no new key in a dict.

    `data.pool.weights.NAME=0.5` becomes `++data.pool.weights.NAME=0.5`. If the name holds dots or slashes it becomes
    `++data.pool.weights={NAME: 0.5}`, because Hydra reads dots as nested keys and slashes as groups.
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


def quoted(argument: str) -> str:
    """Put quotes around the values of `WITH_COMPARISONS`, of which the shell has removed the user's own."""
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in WITH_COMPARISONS or ">" not in value or set(value) & {"'", '"'}:
        return argument
    if not value.startswith("["):
        return f"{key}='{value}'"
    return f"{key}={[entry.strip() for entry in value.strip('[] ').split(',')]}"


def reads(verb: str, key: str) -> bool:
    """Whether a verb reads a key, something below it, or the group that it belongs to."""
    return any(f"{key}.".startswith(f"{entry}.") or entry.startswith(f"{key}.") for entry in READS[verb])


def read_by(verb: str, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return those of a config's values that a verb reads."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if any(f"{key}.".startswith(f"{entry}.") for entry in READS[verb]):
            kept[name] = value
        elif reads(verb, key):
            kept[name] = read_by(verb, value, f"{key}.")
    return kept


def check_keys(verb: str, overrides: Sequence[str]) -> None:
    """Check that the command line sets nothing that the verb does not read.

    Choosing an option of a group that the verb does not read is only a warning, so that one command line can serve
    several verbs.

    Raises:
        ConfigError: a key is set that only other verbs read; one line per key.
    """
    problems = []
    known = {field.name for field in fields(Config)}
    for override in parse(overrides) if verb in READS else ():
        key = override.key_or_group.replace("/", ".")
        root = key.partition(".")[0]
        if root not in known or reads(verb, key):
            continue
        readers = [name for name in READS if reads(name, key)]
        names = " and ".join(filter(None, [", ".join(readers[:-1]), *readers[-1:]]))
        if override.key_or_group in GROUPS and not isinstance(override.value(), dict):
            if is_first():
                print(f"{override.input_line}: ignored, {verb} does not read this group", file=sys.stderr)
        else:
            problems.append(
                f"{override.input_line}: only {names} {'read' if len(readers) > 1 else 'reads'} it; leave it out"
            )
    if problems:
        raise ConfigError(problems)
