"""Makes the data of a sweep's later runs while earlier ones train, in a process of its own; no GPU waits for it then.

The parent starts this module as `python -m tometune.sweep.prefetch` and sends the runs' configs to its stdin. It fills
the cache, from which the runs then read. Whatever fails here is tried again by the run itself, which reports it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import OmegaConf

from tometune.common.distributed import is_first
from tometune.common.process import stop_signals
from tometune.config.data import PoolOrder, ScorerKind, ranking
from tometune.config.root import Config, typed
from tometune.config.sweep_cells import Jobs
from tometune.runs.identity import plain
from tometune.runs.inputs import RunInputs
from tometune.runs.run import runs_folder
from tometune.sweep.cells import State, cell_of, status_of

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@contextmanager
def prefetched(jobs: Jobs) -> Iterator[None]:
    """Make the data of all runs but the first that is missing while the body runs; without an NVIDIA GPU, do nothing.

    On a CPU the training needs the cores itself.
    """
    missing = missing_after_first(jobs) if is_first() and NVIDIA_DRIVER.exists() else []
    if not missing:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "tometune.sweep.prefetch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # runs report on the same data
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps([plain(config) for config in missing]).encode())
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def missing_after_first(jobs: Jobs) -> list[Config]:
    """Return the configs of the runs that are not completed, without the first, whose data is made at once."""
    valid = [job for job in jobs.known if not job.problems]
    states = [status_of(runs_folder(job.config), cell_of(job.config, job.overrides)).state for job in valid]
    return [job.config for job, state in zip(valid, states, strict=True) if state is not State.completed][1:]


def main() -> None:
    """Make the tasks, mixes and tokens of the configs in stdin, at low priority, as long as the parent lives."""
    os.nice(10)
    parent = os.getppid()
    configs = [typed(OmegaConf.create(values)) for values in json.load(sys.stdin)]
    with stop_signals():  # the end of the sweep unwinds this process, so that its worker processes end with it
        for config in configs:
            if os.getppid() != parent:
                return
            if ranking(config.data) in (PoolOrder.ifd, ScorerKind.fineweb_edu):  # a model reads the pool, on the GPU
                continue
            with suppress(Exception):
                RunInputs.resolve(config).load()


if __name__ == "__main__":
    main()
