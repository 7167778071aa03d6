"""The command line: what was typed after the verb, and what of it the verb does not read."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.utils import get_args_parser  # the parser that hydra.main uses; there is no public name for it
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from tometune.common.errors import UserError
from tometune.config.store import conf_dir

OWN_KEYS = ("data.pool.weights", "data.pool.caps")
"""Dicts whose keys are names in the user's data."""


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


def read_command_line() -> CommandLine:
    """Read the part of this process's command line that is about the config.

    Raises:
        UserError: an option with dashes is not one of Hydra's.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            arguments = get_args_parser().parse_args()
    except SystemExit as stop:
        if not stop.code:
            raise
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        fix = "keys are set without dashes, as key=value; options like -m stand before or after all keys"
        raise UserError(f"{reason}; {fix}") from None
    if arguments.experimental_rerun is not None:
        raise UserError("--experimental-rerun: reads a pickle, which can run any code; give the overrides instead")
    folder = Path(arguments.config_dir).resolve() if arguments.config_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir={arguments.config_dir}: no such folder")
    several = arguments.multirun or any(text.startswith("+sweep=") for text in arguments.overrides)
    shows = (arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion)
    return CommandLine(arguments.overrides, several, folder, any(shows))


def with_plus(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the pluses by which Hydra lets a new key into a dict whose keys are the user's own.

    `data.pool.weights.NAME=0.5` becomes `++data.pool.weights.NAME=0.5`, and with a name that holds dots
    or slashes `++data.pool.weights={NAME: 0.5}`: dots would make it nested, and a key with slashes is a group.
    """
    return [_with_plus(argument) for argument in arguments]


def _with_plus(argument: str) -> str:
    """Return one argument."""
    found = re.fullmatch(rf"\+{{0,2}}({'|'.join(map(re.escape, OWN_KEYS))})(?:\.([^=]+))?=(.*)", argument, re.DOTALL)
    if found is None:
        return argument
    key, name, value = found.groups()
    if name is None:
        return f"++{argument.lstrip('+')}" if value.strip("{} ") else argument
    return f"++{key}.{name}={value}" if re.fullmatch(r"[\w-]+", name) else f"++{key}={{{name}: {value}}}"


def parsed(texts: Sequence[str]) -> Iterator[Override]:
    """Yield the overrides that are of the right form; Hydra says itself which are not."""
    parser = OverridesParser.create()
    for text in texts:
        with contextlib.suppress(HydraException):
            yield parser.parse_override(text)


def unread(line: CommandLine, reasons: Mapping[str, str]) -> list[str]:
    """Return one line for each override of what a verb does not read, so that none is passed over without a word.

    Args:
        line: the command line.
        reasons: why, and what to do, by key or group; what is below a key is meant too.
    """
    return [
        f"{override.input_line}: {reason}"
        for override in (() if line.only_shows else parsed(line.overrides))
        for name, reason in reasons.items()
        if f"{override.key_or_group}.".startswith(f"{name}.")
    ]
