"""The data of later runs is made while earlier ones train."""

import time
from pathlib import Path

import pytest

from tometune.config.command_line import CommandLine
from tometune.config.root import register
from tometune.config.sweep_cells import Jobs, jobs_of
from tometune.sweep import prefetch
from tometune.sweep.prefetch import missing_after_first, prefetched

register()


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    sizes = ("data=pydocs_3k", "data.rows=1100,1200,0,1300", "data.base.rows=1000", "sweep.name=sizes")
    where = (f"paths.cache={tmp_path / 'cache'}", f"paths.multirun={tmp_path / 'multirun'}")
    jobs = jobs_of(CommandLine(["model=tiny", "eval=pydocs", "tracking=none", *sizes, *where], multirun=True))
    return jobs


def test_all_runs_but_the_first_and_the_invalid_ones_are_prepared(jobs):
    assert [config.data.rows for config in missing_after_first(jobs)] == [1200, 1300]


def test_nothing_starts_without_a_gpu(jobs, monkeypatch, tmp_path):
    monkeypatch.setattr(prefetch, "NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(prefetch, "missing_after_first", lambda _: pytest.fail("it looked for runs"))
    with prefetched(jobs):
        pass


@pytest.mark.nightly
def test_the_tokens_of_later_runs_are_cached_while_the_body_runs(jobs, monkeypatch, tmp_path):
    monkeypatch.setattr(prefetch, "NVIDIA_DRIVER", tmp_path)
    with prefetched(jobs):
        end = time.monotonic() + 120
        while len(list((tmp_path / "cache" / "tokens").glob("*/config.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.2)
    assert len(list((tmp_path / "cache" / "tokens").glob("*/config.json"))) >= 2
