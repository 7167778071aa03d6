"""A verb to run in this process, with the real command line and the real conf/."""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tometune.common.errors import ConfigError
from tometune.config.app import verb
from tometune.config.command_line import parse, quoted, read_command_line
from tometune.config.root import CONFIG_NAME, Config, check, conf_dir, register, setting_keys
from tometune.config.sweep_cells import jobs_of, to_config
from tometune.sweep import arms  # noqa: F401 -- its resolver names the arms of a sweep over sources

SCHEMA = OmegaConf.structured(Config)


@dataclass
class Outcome:
    status: int
    out: str
    errors: list[str]
    configs: list[Config]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """Run a verb in an empty folder; it keeps the configs it was given and fails where `failing` says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str, failing: dict[int, BaseException] | None = None, name: str = "train") -> Outcome:
        configs: list[Config] = []
        monkeypatch.setattr("tometune.config.app.name_of", lambda _: name)
        monkeypatch.setattr(sys, "argv", [name, *arguments])

        @verb
        def main(config: Config) -> None:
            configs.append(config)
            if failing and config.seed in failing:
                raise failing[config.seed]

        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err.splitlines(), configs)

    return run


@cache
def composed(*groups: str) -> DictConfig:
    """Compose a choice of groups, once for all tests: it takes most of the time of a command."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(CONFIG_NAME, [*groups, "hydra.mode=RUN"], return_hydra_config=True)


def config_of(*arguments: str) -> Config:
    """Return the checked config of a command line with a single run, without running it.

    Raises:
        ConfigError: the checks find problems.
    """
    overrides = read_command_line(arguments).overrides
    groups = [text for text in overrides if "." not in text.partition("=")[0] or text.startswith(("+", "~", "hydra"))]
    config = deepcopy(composed(*groups))
    for override in parse(text for text in overrides if text not in groups):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_force_add())
    config.hydra.overrides.task = overrides
    made = to_config(config, config.hydra)
    check(made)
    return made


def problems_of(*arguments: str) -> list[str]:
    """Return the problems that the checks find in the config of a command line with a single run."""
    try:
        config_of(*arguments)
    except ConfigError as error:
        return error.problems
    return []


def sweep_of(*arguments: str) -> list[Config]:
    """Return the configs of a command line with several runs, without running them."""
    register()
    jobs = jobs_of(read_command_line(arguments))
    assert jobs is not None
    assert not any(job.problems for job in jobs.known)
    return [job.config for job in jobs.known]


def wrong_words(line: str) -> list[str]:
    """Return the arguments of a line that name no key or no option, or have a wrong type; `…` stands for any value."""
    wrong = []
    for word in line.split():
        key, _, value = word.lstrip("+").partition("=")
        folder = conf_dir() / key.partition("@")[0]
        if word == "-m" or key.startswith("eval.tasks."):
            continue
        try:
            if folder.is_dir():
                assert value == "…" or (folder / f"{value}.yaml").exists(), "no such option"
            elif value in ("…", "N"):
                assert key in setting_keys(), "no such key"
            else:
                OmegaConf.update(SCHEMA, key, next(parse([quoted(word)])).value())
        except (AssertionError, OmegaConfBaseException) as error:
            wrong.append(f"{word}: {error}")
    return wrong
