"""What a verb reads: its help, and keys and groups that are only for others (see golden/errors.txt, too)."""

import importlib
import shlex
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from tests.config.conftest import wrong_words
from tometune.__main__ import verbs
from tometune.common.errors import ConfigError
from tometune.config.aliases import answers
from tometune.config.command_line import GROUPS, READS, check_keys, reads
from tometune.config.help import help_text
from tometune.config.root import Config, conf_dir

HINTS = get_type_hints(Config)
NESTED = [name for name, hint in HINTS.items() if is_dataclass(hint)]
KEYS = [
    *(name for name in HINTS if name not in NESTED),
    *(f"{name}.{field.name}" for name in NESTED for field in fields(HINTS[name])),
]


def test_the_table_has_every_verb_and_every_setting():
    assert set(READS) == set(verbs())
    assert [key for key in KEYS if not any(reads(verb, key) for verb in READS)] == []
    assert {entry.partition(".")[0] for entries in READS.values() for entry in entries} == set(HINTS)
    assert set(GROUPS) == {path.name for path in conf_dir().iterdir() if path.name in NESTED} - {"sweep"}


@pytest.mark.parametrize("verb", READS)
def test_each_key_and_group_is_read_or_rejected_with_the_verbs_that_read_it(verb, capsys):
    for key in KEYS:
        if reads(verb, key):
            check_keys(verb, [f"{key}=1"])
            continue
        with pytest.raises(ConfigError) as error:
            check_keys(verb, [f"{key}=1"])
        reason, _, fix = str(error.value).partition("; ")
        assert reason.startswith(f"{key}=1: only ")
        assert {name for name in READS if name in reason.split(": only ")[1]} == {n for n in READS if reads(n, key)}
        assert fix == "leave it out"
    assert capsys.readouterr().err == ""
    if not reads(verb, "sweep"):  # an option of this group also decides how many runs there are
        with pytest.raises(ConfigError, match=r"^\+sweep=seeds: only train, prepare and report read it; leave it out"):
            check_keys(verb, ["+sweep=seeds"])
    check_keys(verb, ["+experiment=smoke"])
    for group in GROUPS:
        check_keys(verb, [f"{group}=default"])
        warning = f"{group}=default: ignored, {verb} does not read this group\n"
        assert capsys.readouterr().err == ("" if reads(verb, group) else warning)


@pytest.mark.parametrize("verb", READS)
def test_the_help_shows_what_the_verb_reads_in_80_columns(verb):
    docstring = importlib.import_module(f"tometune.{verb}").__doc__
    lines = help_text(verb, docstring).splitlines()
    assert max(len(line) for line in lines if not line.startswith("  /")) <= 80
    shown = {line.split("=")[0].strip() for line in lines if line.startswith("  ") and "=" in line}
    for key in KEYS:
        group = key.partition(".")[0]
        assert (bool({key, f"{group}.KEY"} & shown)) == reads(verb, key), key
    for command in lines[lines.index("Examples:") + 1 :][:4]:
        program, name, *overrides = shlex.split(command, comments=True)
        assert (program, name) == ("tometune", verb)
        assert [problem for word in overrides for problem in wrong_words(word)] == []
        check_keys(verb, overrides)
        assert [*answers(overrides)] == []
