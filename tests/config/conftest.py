"""A verb to run in this process, with the real command line and the real conf/."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tometune.config.main import verb
from tometune.config.root import Config


@dataclass
class Outcome:
    status: int
    out: str
    errors: list[str]
    configs: list[Config] = field(default_factory=list)


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Command:
    """Run a verb in an empty folder; it keeps the configs it was given and fails where `failing` says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str, failing: dict[int, BaseException] | None = None) -> Outcome:
        configs: list[Config] = []

        @verb
        def main(config: Config) -> float:
            configs.append(config)
            if failing and config.seed in failing:
                raise failing[config.seed]
            return 0.0

        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err.splitlines(), configs)

    return run
