"""The settings that each verb reads, and what happens if the command line sets others."""

import sys
from collections.abc import Sequence
from dataclasses import fields

from tometune.common.distributed import is_first
from tometune.common.errors import ConfigError
from tometune.config.command_line import parse
from tometune.config.root import Config

MAKES_A_RUN = ("model", "data", "lora", "trainer", "eval", "tracking", "sweep", "seed", "seeds", "paths")
"""`prepare` takes the command line of `train`: it checks all of it, and builds what `train` would train on."""

READS = {
    "train": (*MAKES_A_RUN, "plan"),
    "prepare": MAKES_A_RUN,
    "evaluate": ("model", "eval", "tracking", "seed", "seeds.generation", "paths", "run"),
    "report": ("eval.resamples", "eval.confidence", "tracking", "sweep", "paths", "publish"),
    "export": ("export", "paths", "run", "format", "quant", "push_to", "private"),
    "chat": ("model", "chat", "seed", "seeds.generation", "paths", "run", "against", "gguf", "ui", "share"),
}
"""Groups and keys by verb. A key stands for everything below it."""

GROUPS = ("model", "data", "lora", "trainer", "eval", "tracking", "chat", "export")
"""Groups of `conf/` whose options only set values. An option of `sweep` also decides how many runs there are."""


def reads(verb: str, key: str) -> bool:
    """Whether a verb reads a key, something below it, or the group that it belongs to."""
    return any(f"{key}.".startswith(f"{entry}.") or entry.startswith(f"{key}.") for entry in READS[verb])


def check_keys(verb: str, overrides: Sequence[str]) -> None:
    """Check that the command line sets nothing that the verb does not read.

    A group may be chosen all the same, so that the same choices can be given to several verbs: that is one warning.

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
