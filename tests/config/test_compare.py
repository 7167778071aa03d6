"""The second mix of `compare=`: what holds for both, what for it alone, and what is refused."""

import sys

import pytest

from tometune.config.app import verb
from tometune.config.compare import compared
from tometune.config.root import Config


@pytest.fixture
def second(monkeypatch, capsys, tmp_path):
    """Compose a command line; returns the second config, or status and lines of the error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments):
        made: list[Config] = []

        @verb
        def main(config: Config) -> None:
            made.append(compared(config))

        monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        if status:
            return [status, *capsys.readouterr().err.splitlines()]
        return made[0] if len(made) == 1 else made

    return run


FILES = ("data=files_300k", "data.base.path=b.jsonl", "data.pool.path=p.jsonl")


def test_paths_hold_for_both_and_a_mix_without_a_pool_has_none(second):
    config = second(*FILES, "data.rows=50", "data.base.rows=20", "seed=3", 'compare="files_100k data.rows=20"')
    assert (config.data.name, config.data.rows, config.data.base.path) == ("files_100k", 20, "b.jsonl")
    assert config.data.pool is None
    assert config.seeds.data == 3
    config = second(*FILES, "data.pool.format=alpaca", "compare=files_200k")
    assert (config.data.rows, config.data.pool.path, str(config.data.pool.format)) == (200_000, "p.jsonl", "alpaca")


def test_what_differs_may_be_the_seed_alone(second):
    config = second("data=pydocs_2k", 'compare="pydocs_2k seeds.data=7"')
    assert (config.data.name, config.seeds.data, config.seeds.order) == ("pydocs_2k", 7, 0)


def test_a_multirun_compares_each(second):
    configs = second("-m", "data=pydocs_2k,pydocs_3k", "compare=pydocs_1k")
    assert [config.data.name for config in configs] == ["pydocs_1k", "pydocs_1k"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare=files_10k",), "compare=files_10k: no such mix; did you mean files_100k, "),
        (("compare=files_300k",), "compare=files_300k: is the mix of data=files_300k itself; name another, or what "),
        (("compare=''",), "compare=: no such mix (mixes: "),
        (('compare="files_200k lora.r=3"',), "compare: lora.r=3 is not about the mix; set data or seeds.data there"),
        (('compare="files_200k data.rowz=3"',), "compare: data.rowz: "),
        (("data.base.rows=7", "compare=files_100k"), "compare=files_100k: data.rows=100000: above data.base.rows=7"),
    ],
)
def test_what_is_wrong_is_one_line(second, arguments, message):
    status, line = second(*FILES, *arguments)
    assert status == 2
    assert line.startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        ("data=pydocs_3k_top", "data.scorer.kind=column", "compare=pydocs_3k"),
        ("data=pydocs_3k", "data.filters.refusals=true", "compare=pydocs_1k"),
    ],
)
def test_what_the_second_mix_does_not_read_is_left_out(second, line):
    config = second(*line)
    assert config.data == second("data=pydocs_2k", line[-1]).data
