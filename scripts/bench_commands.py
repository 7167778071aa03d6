"""The measurements of bench.py that time whole commands: `bench_commands.py NAME ARGUMENT…`.

The last line on stdout is the result as JSON.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]

TINY = (
    *("+experiment=smoke", "eval.base=false", "eval.limit=1", "trainer.max_steps=2"),
    *(f"~eval.tasks.{task}" for task in ("summarisation", "question_answering", "data_to_text")),
)
"""A run that is short, so that what is around it shows."""


def answer(status: str, *arguments: str) -> Result:
    """Time `train` from the start of its process to its end, where it only has to answer."""
    return train(arguments, int(status))


def sweep(runs: str, outputs: str) -> Result:
    """Time a sweep of tiny runs, as many runs one by one, and the sweep again when it is finished.

    All have seeds of their own, so that no run finds another's data in the cache.
    """
    number = int(runs)
    folder = Path(outputs)
    train([*TINY, f"seed={2 * number}", f"paths.outputs={folder}"])  # fills the cache with what all share
    singles = [train([*TINY, f"seed={seed}", f"paths.outputs={folder}"]) for seed in range(number)]
    command = ["-m", *TINY, f"paths.multirun={folder}", "sweep.name=bench"]
    command.append(f"seed={','.join(str(seed) for seed in range(number, 2 * number))}")
    whole, again = train(command), train(command)
    result: Result = {"runs": number}
    for unit in ("seconds", "cpu_seconds"):
        result[f"over_singles_{unit}"] = whole[unit] / sum(single[unit] for single in singles)
        result[f"finished_{unit}"] = again[unit] / number
    return result


def train(arguments: Sequence[str], status: int = 0) -> Result:
    """Run `train` in a process of its own and return its time by the clock and of CPU.

    Raises:
        RuntimeError: it ended with another status.
    """
    started, before = time.perf_counter(), cpu_seconds()
    done = subprocess.run([sys.executable, "-m", "tometune.train", *arguments], capture_output=True)
    seconds = time.perf_counter() - started
    if done.returncode != status:
        raise RuntimeError(f"{arguments}: status {done.returncode}, not {status}: {done.stderr.decode()}")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - before}


def cpu_seconds() -> float:
    """Return the CPU time of all that this process has started and seen the end of."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


MEASURES = {f.__name__: f for f in (answer, sweep)}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print("\n" + json.dumps(MEASURES[name](*arguments)), flush=True)
