"""Profile some steps of a training: GPU time by kind of kernel, the GPU's idle share, and the main thread's functions.

python scripts/profile_step.py FILE.json --from 61 --steps 4 model=smollm2_135m data=files_100k …
torchrun --nproc-per-node 2 scripts/profile_step.py FILE.json --from 61 --steps 4 model=smollm2_135m …

All other arguments are overrides of `tometune.train`. Kernels are recorded during `--steps` steps, and Python's
functions during as many after them, under cProfile, which slows Python down; waiting for the GPU counts as their time.
The log line and the checkpoint of the step `--from` are part of what is recorded, if they are due. The GPU has no work
left when the recording begins, so its first step counts as idle until Python has started it. With several processes
the first one writes, and a kernel of NCCL that waits for another GPU counts as work.
"""

import argparse
import cProfile
import json
import os
import pstats
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tometune.runs.run import git_state, versions
from tometune.train import main as train
from tometune.training.trainer import StepCallback

KINDS = {
    "communication": r"nccl",
    "expanding 4 bits": r"dequant",
    "attention": r"flex_attention|flash|fmha",
    "matrix products": r"nvjet|gemm|cutlass|xmma|splitk|triton_tem",
    "fused by the compiler": r"^triton_",
}
"""Patterns of kernel names, of which the first that matches counts."""
OTHER = "elementwise, copies, optimiser"

FUNCTIONS = 40


class Profiler:
    """Counts steps; returns what was recorded once both recordings have ended."""

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps, self.found = first, steps, dict[str, Any]()
        self._gpu = torch.cuda.is_available()
        self._kernels: Any = None
        self._python = cProfile.Profile()
        self._since = 0.0

    def step(self, done: int) -> None:
        """Take note that so many steps are done."""
        if done == self.first:
            self._wait()
            self._kernels = profile(activities=[ProfilerActivity.CUDA if self._gpu else ProfilerActivity.CPU])
            self._kernels.__enter__()
            self._since = time.perf_counter()
        elif done == self.first + self.steps:
            self._wait()
            seconds = time.perf_counter() - self._since
            self._kernels.__exit__(None, None, None)
            self.found = summary(self._kernels.events(), seconds, self.steps, self._gpu)
            self._since = time.perf_counter()
            self._python.enable()
        elif done == self.first + 2 * self.steps:
            self._python.disable()
            self.found["python"] = functions(self._python, self.steps)

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


def summary(events: Any, seconds: float, steps: int, gpu: bool) -> dict[str, Any]:
    """Return milliseconds per step by kind and by kernel, and the share of the time in which no kernel ran."""
    kernels: dict[str, list[float]] = {}
    spans = []
    for event in events:
        if gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        start, end = event.time_range.start, event.time_range.end  # microseconds
        kernels.setdefault(event.name, []).append((end - start) / 1e3)
        spans.append((start, end))
    busy, until = 0.0, 0.0
    for start, end in sorted(spans):  # kernels of several streams may overlap
        busy += max(0.0, end - max(start, until)) / 1e3
        until = max(until, end)
    by_kind: dict[str, float] = {}
    for name, times in kernels.items():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)
        by_kind[kind] = by_kind.get(kind, 0) + sum(times) / steps
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:FUNCTIONS]
    return {
        "ms_per_step": round(seconds * 1e3 / steps, 2),
        "busy_ms_per_step": round(busy / steps, 2),
        "idle_share": round(1 - busy / (seconds * 1e3), 4),
        "by_kind": {kind: round(time, 2) for kind, time in sorted(by_kind.items(), key=lambda item: -item[1])},
        "kernels": [
            [name[:100], round(sum(times) / steps, 2), round(len(times) / steps, 2)] for name, times in longest
        ],
    }


def functions(profiler: cProfile.Profile, steps: int) -> list[list[Any]]:
    """Return the functions with most time of their own: name, ms per step, calls, and ms with what they called."""
    stats: Any = pstats.Stats(profiler)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:FUNCTIONS]
    place = re.compile(r".*/(?:site-packages|lib/python[\d.]+)/")

    def ms(seconds: float) -> float:
        return round(seconds * 1e3 / steps, 2)

    return [
        [f"{place.sub('', file)}:{line} {name}", ms(own), round(calls / steps, 2), ms(whole)]
        for (file, line, name), (_, calls, own, whole, _) in rows
    ]


def main() -> None:
    """Train with a profiler that listens to the steps, and write what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--from", dest="first", type=int, default=61, help="the last step before the recording")
    parser.add_argument("--steps", type=int, default=4)
    options, overrides = parser.parse_known_args()
    file = options.file.resolve()
    profiler, as_before = Profiler(options.first, options.steps), StepCallback.on_step_end

    def on_step_end(self: StepCallback, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        as_before(self, args, state, control, **keywords)
        profiler.step(state.global_step)

    StepCallback.on_step_end = on_step_end  # type: ignore[method-assign,assignment]
    sys.argv = ["tometune.train", *overrides]
    try:
        train()
    finally:
        if os.environ.get("RANK", "0") == "0" and "python" in profiler.found:
            git = git_state()
            circumstances = {
                "commit": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}",
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
                "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
                "overrides": overrides,
                "steps": f"{options.first + 1} to {options.first + options.steps}",
            }
            file.write_text(json.dumps({**circumstances, **profiler.found}, indent=1) + "\n", encoding="utf-8")
    if "python" not in profiler.found:
        needed = options.first + 2 * options.steps
        sys.exit(f"no profile: the run is finished, has fewer than {needed} steps, or trains in Unsloth's process")


if __name__ == "__main__":
    main()
