"""Measure the speeds of docs/benchmarks.md: rows/s of preparing, time to the first step, ROUGE, peak memory.

The table shows each figure, the median of several repetitions, next to its target; a missed target is no error. Every
measurement runs in a fresh process, with a cache that is deleted at the end. Without --base and --pool, synthetic rows
of the same shape are used. "By CPU time" shows what the figure would be on free cores, for machines that are shared.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tometune.runs.run import git_state, versions

MEASURES, COMMANDS = (Path(__file__).with_name(f"bench_{name}.py") for name in ("measures", "commands"))
Result = dict[str, Any]

ANSWERS = {
    "--help": ("0", "--help"),
    "--cfg job": ("0", "--cfg", "job"),
    "an error in the config": ("2", "data=mix_30k", "trainer.lerning_rate=1"),
}
"""Commands that `train` answers without loading anything: exit status and arguments."""


def main() -> None:
    """Measure, print the table, write the file."""
    options = command_line()
    with tempfile.TemporaryDirectory(prefix="tometune-bench-") as name:
        header, figures = describe(options), measure(options, Path(name))
    console = Console(highlight=False)
    for label, value in header.items():
        console.print(f"{label}: {value}", soft_wrap=True, markup=False)
    console.print(table(figures))
    if options.json:
        options.json.write_text(json.dumps({**header, "figures": figures}, indent=2) + "\n", encoding="utf-8")


def command_line() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, help="parquet file of conversations (default: synthetic rows)")
    parser.add_argument("--pool", type=Path, help="parquet file; fills the mix up to three times the base")
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic rows, or rows used of the base")
    parser.add_argument("--model", default="smollm2_135m", help="option of conf/model whose tokenizer is used")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; memory is measured once")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs of texts for ROUGE")
    parser.add_argument("--runs", type=int, default=9, help="tiny runs, once as a sweep and once one by one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if (options.base is None) != (options.pool is None):
        parser.error("--base and --pool: give both, or neither")
    return options


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Return commit, machine, versions and data of the measurement."""
    git = git_state()
    data = "the files given" if options.base else "made-up rows of the same shape"
    return {
        "commit": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "data": f"{data}, {options.rows:,} rows of the base; model={options.model}",
    }


def measure(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Return the figures, each with its target."""
    base, pool, rows, model = options.base, options.pool, options.rows, options.model
    if base is None:
        base, pool = folder / "base.parquet", folder / "pool.parquet"
        child("make", base, pool, rows)
    base, pool = base.resolve(), pool.resolve()
    os.environ["TOMETUNE_CACHE"] = str(folder / "cache")
    child("ready", model)
    mix = (model, base, pool, 3 * rows)
    _, peak = child("whole", *mix)
    child("start", *mix, folder / "outputs")  # fills the cache for the others
    starts = [child("start", *mix, folder / "outputs")[0] for _ in range(options.repeat)]
    speeds = [child("prepare", model, base, rows)[0] for _ in range(options.repeat)]
    rouge = [child("rouge", options.pairs, one_core=True)[0] for _ in range(options.repeat)]
    answers = {name: [command("answer", *words) for _ in range(options.repeat)] for name, words in ANSWERS.items()}
    sweeps = [command("sweep", options.runs, folder / f"runs-{number}") for number in range(options.repeat)]
    cores = len(os.sched_getaffinity(0))
    figures = [
        figure("standardise, template, tokenise", "rows/s", "≥", 4_000, per(speeds, "rows", "seconds")),
        figure("  by CPU time", "rows/s", "", None, [cores * rate for rate in per(speeds, "rows", "cpu_seconds")]),
        figure("second start to first step", "s", "≤", 5, [each["seconds"] for each in starts]),
        figure("  by CPU time", "s", "", None, [each["cpu_seconds"] for each in starts]),
        figure("  model load, not counted", "s", "", None, [each["model_load_seconds"] for each in starts]),
        *(part for name, each in answers.items() for part in answer_figures(name, each)),
        *sweep_figures(sweeps),
        figure("ROUGE-1/2/L on one core", "pairs/s", "≥", 15_000, per(rouge, "pairs", "seconds")),
        figure("  by CPU time", "pairs/s", "", None, per(rouge, "pairs", "cpu_seconds")),
        figure(f"peak memory for {3 * rows:,} rows", "GB", "≤", 3, [peak / 1e9]),
    ]
    if "rouge_score_pairs" in rouge[0]:
        ours, theirs = per(rouge, "pairs", "cpu_seconds"), per(rouge, "rouge_score_pairs", "rouge_score_cpu_seconds")
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        figures.insert(-1, figure("  times as fast as rouge_score", "", "", None, ratios))
    return figures


def answer_figures(name: str, results: list[Result]) -> list[Result]:
    """Return the lines of the table for one command that answers at once."""
    return [
        figure(f"train: {name}", "s", "≤", 1.5, [each["seconds"] for each in results]),
        figure("  by CPU time", "s", "", None, [each["cpu_seconds"] for each in results]),
    ]


def sweep_figures(results: list[Result]) -> list[Result]:
    """Return the lines of the table for a sweep, each also by CPU time."""
    runs = results[0]["runs"]
    lines = (
        (f"sweep of {runs} over {runs} single", "times", 1.1, "over_singles"),
        ("the same again, per run", "s", 1.0, "finished"),
    )
    return [
        line
        for name, unit, target, key in lines
        for line in (
            figure(name, unit, "≤", target, [each[f"{key}_seconds"] for each in results]),
            figure("  by CPU time", unit, "", None, [each[f"{key}_cpu_seconds"] for each in results]),
        )
    ]


def per(results: list[Result], what: str, seconds: str) -> list[float]:
    """Return a rate for each repetition."""
    return [each[what] / each[seconds] for each in results]


def figure(name: str, unit: str, sign: str, target: float | None, values: Sequence[float]) -> Result:
    """Return one line of the table."""
    middle = median(values)
    met = None if target is None else middle >= target if sign == "≥" else middle <= target
    return {
        "name": name,
        "unit": unit,
        "median": middle,
        "values": list(values),
        "target": target,
        "sign": sign,
        "met": met,
    }


def table(figures: list[Result]) -> Table:
    """Return the figures as a table."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("what", "median", "from", "to", "unit", "target", "met"):
        shown.add_column(name, justify="right" if name in ("median", "from", "to", "target") else "left", no_wrap=True)
    for each in figures:
        numbers = (each["median"], min(each["values"]), max(each["values"]))
        target = "" if each["target"] is None else f"{each['sign']} {each['target']:,}"
        met = {None: "", True: "yes", False: "no"}[each["met"]]
        shown.add_row(each["name"], *map(short, numbers), each["unit"], target, met)
    return shown


def short(number: float) -> str:
    """Format a number with about three significant digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2f}"


def command(name: str, *arguments: object) -> Result:
    """Run one measurement of whole commands and return its result."""
    return child(name, *arguments, script=COMMANDS)[0]


def child(name: str, *arguments: object, one_core: bool = False, script: Path = MEASURES) -> tuple[Result, int]:
    """Run one measurement in a fresh process; returns its result and its peak resident memory in bytes.

    This process imports nothing large, since the peak of a process includes that of the one it was forked from.
    """
    environment = {**os.environ, "BENCH_STARTED": str(time.time())} | ({"RAYON_NUM_THREADS": "1"} if one_core else {})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        words = [sys.executable, str(script), name, *map(str, arguments)]
        process = subprocess.Popen(words, stdout=out, stderr=errors, env=environment)
        if one_core:
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            sys.exit(f"bench: {name} ended with status {process.returncode}:\n{errors.read()[-3000:]}")
        return json.loads(out.read().splitlines()[-1]), usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
