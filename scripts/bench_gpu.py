"""Compare tometune's training and generation with common recipes, on one GPU and the same conversations.

Each contender runs in its own process. If one fails, its last line is reported and the others continue. The JSON file
is written after each contender, so an interrupted benchmark keeps its results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from bench_gpu_contenders import SETTINGS, TOMETUNE, WARM
from bench_gpu_model import SHAPES
from bench_gpu_recipes import RECIPES
from bench_gpu_report import finish, lines, parameters
from rich.console import Console

from tometune.runs.run import git_state, versions

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("bench_gpu_contenders.py")
PROFILED = "generate_profiled"  # only if it is named, since a profile slows down the batch sizes after it
GENERATION = ("generate_tometune", "generate_plain", PROFILED)
CONTENDERS = (*TOMETUNE, *RECIPES, *GENERATION)
WIDTH = 134
"""Columns that the tables take."""

Result = dict[str, Any]


class ChildError(Exception):
    """A process failed; the text is its last line that says why."""


def main() -> None:
    """Measure contender after contender, write, print."""
    options = command_line()
    gpu = gpu_name()
    if gpu is None and not options.rehearse:
        print("bench_gpu: there is no GPU here; --rehearse tries the script out on a CPU", file=sys.stderr)
        sys.exit(2)
    report: Result = {"circumstances": circumstances(options, gpu), "facts": {}, "contenders": {}, "generation": {}}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    with tempfile.TemporaryDirectory(prefix="tometune-bench-gpu-", ignore_cleanup_errors=True) as name:
        try:
            measure(options, Path(name), report, gpu is not None)
        except KeyboardInterrupt:
            report["circumstances"]["interrupted"] = "yes, what follows was measured before"
            status = 130
        except ChildError as error:
            print(f"bench_gpu: {error}", file=sys.stderr)
            status = 1
    write(options.json, report)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)  # a narrower one would cut figures off
    for line in lines(report):
        console.print(line, soft_wrap=isinstance(line, str), markup=False)
    sys.exit(status)


def command_line(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--base", type=Path, help="parquet file of conversations (default: Python's documentation)")
    add("--pool", type=Path, help="parquet file that two thirds of the rows are drawn from")
    add("--rows", type=int, help="conversations to train on (default: 12,000 of files, 3,000 of the documentation)")
    add("--model-shape", choices=SHAPES, default="llama32_3b", help="random weights of this architecture")
    add(
        "--storage", choices=("nf4", "bf16"), default="nf4", help="of the frozen weights, except for tometune_{bf16,8b}"
    )
    add("--max-length", type=int, default=2048, help="tokens of a row, or of a pack, except for tometune_8b")
    add("--price", type=float, metavar="DOLLARS", help="of a GPU hour, for the cost of the table's nine runs")
    add("--model", type=Path, metavar="FOLDER", help="a model in safetensors instead, not quantised")
    add("--contenders", help=f"which ones, in this order (default: all but the last) of {','.join(CONTENDERS)}")
    add("--steps", type=int, default=40, help="measured steps")
    add("--warmup", type=int, default=8, help="steps before the measurement")
    add("--logging-steps", type=int, default=1, help="trainer.logging_steps of tometune; a rate for each log line")
    add("--quick", action="store_true", help="4 steps of warm-up and 16 measured steps")
    add("--batches", default="32,128", help="batch sizes of generation")
    add("--new-tokens", type=int, default=128, help="tokens per answer")
    add(
        "--per-contender-timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="time limit of a contender",
    )
    add("--json", type=Path, metavar="FILE", help="write all results here, after each contender")
    add("--rehearse", action="store_true", help="run without a GPU, to test the script; the figures mean nothing")
    options = parser.parse_args(arguments)
    if (options.base is None) != (options.pool is None):
        parser.error("--base and --pool: give both, or neither")
    possible = [name for name in CONTENDERS if not (options.model and "shape" in SETTINGS.get(name, {}))]
    usual = [name for name in possible if name != PROFILED]
    options.contenders = list(dict.fromkeys(options.contenders.split(","))) if options.contenders else usual
    for number, name in enumerate(options.contenders):
        if name not in CONTENDERS:
            parser.error(f"--contenders: there is no {name!r}; there are {', '.join(CONTENDERS)}")
        if name not in possible:
            parser.error(f"--contenders: {name} has a model of its own; leave --model out")
        if name in WARM and WARM[name] not in options.contenders[:number]:
            parser.error(f"--contenders: {name} repeats {WARM[name]}; name that one before it")
    if options.quick:
        options.warmup, options.steps = 4, 16
    if min(options.steps, options.warmup, options.logging_steps) < 1:
        parser.error("--steps, --warmup and --logging-steps: at least 1 (the first step holds loading and compiling)")
    if options.steps % options.logging_steps or options.warmup % options.logging_steps:
        parser.error("--logging-steps: has to divide --steps and --warmup, since a log line has one rate for its steps")
    if options.logging_steps > 1 and not set(options.contenders) <= {*TOMETUNE, *GENERATION}:
        parser.error("--logging-steps: is tometune's alone, and the recipes log each step; leave them out")
    options.batches = [int(size) for size in options.batches.split(",")]
    options.rows = options.rows or (12_000 if options.base else 3_000)
    return options


def gpu_name() -> str | None:
    """Return the first GPU's name as its driver tells it; torch is not imported, which would hold memory there."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def circumstances(options: argparse.Namespace, gpu: str | None) -> dict[str, str]:
    """Return what is measured on and with."""
    git = git_state()
    found = versions()
    for package in ("unsloth_zoo", "liger-kernel", "triton"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return {
        "commit": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}",
        "gpu": gpu or "none: a rehearsal, the figures mean nothing",
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
        "data": f"{options.rows:,} rows of {'the files given' if options.base else 'the documentation'}",
        "model": str(options.model) if options.model else f"random weights, shape {options.model_shape}",
        "weights": f"{options.storage}, rows of at most {options.max_length:,} tokens",
        "steps": f"{options.steps} after {options.warmup} of warm-up; trainer.logging_steps={options.logging_steps}",
    }


def measure(options: argparse.Namespace, folder: Path, report: Result, gpu: bool) -> None:
    """Fill the report; it is written after each contender."""
    settings: Result = {
        "folder": str(folder),
        "model": str(options.model.resolve() if options.model else folder / "model"),
        "shape": options.model_shape,
        "base": str(options.base.resolve()) if options.base else None,
        "pool": str(options.pool.resolve()) if options.pool else None,
        "gpu": gpu,
        **{key: getattr(options, key) for key in ("rows", "steps", "warmup", "logging_steps", "batches", "new_tokens")},
        **{key: getattr(options, key) for key in ("storage", "max_length")},
    }
    if not gpu:  # tometune's 16,384 tokens per step would take minutes on a CPU
        settings["overrides"] = ["trainer.tokens_per_step=512", "trainer.max_length=256"]
        settings["max_length"] = 256
    run = Runner(folder, options.per_contender_timeout)
    if options.model is None:
        run("model", settings)
    matmul = run("matmul", settings) if gpu else {}
    report["facts"] = {"parameters": parameters_of(settings), **run("rows", settings), **matmul}

    def facts_of(own: Result) -> Result:
        facts = {**report["facts"], "parameters": parameters_of(own)}
        if any(own[key] != settings[key] for key in ("shape", "max_length")):  # the rows were counted for the other
            del facts["base_mean_tokens"], facts["pool_mean_tokens"]
        return facts

    for name in options.contenders:
        kind = "generation" if name in GENERATION else "contenders"
        own = settings if options.rehearse else {**settings, **SETTINGS.get(name, {})}
        try:
            if own["shape"] != settings["shape"]:
                own["model"] = str(folder / own["shape"])
                run("model", own)
            result = run(name, own)
            if name in GENERATION:
                done = result
            else:
                done = finish(result, facts_of(own), options.warmup, options.price)
                done |= {key: own[key] for key in SETTINGS.get(name, {})} | {"parameters": parameters_of(own)}
        except (ChildError, ValueError) as error:
            done = {"error": str(error)}
        report[kind][name] = done
        write(options.json, report)


def parameters_of(settings: Result) -> int:
    """Return the parameters of the model that these settings name."""
    return parameters(json.loads((Path(settings["model"]) / "config.json").read_text(encoding="utf-8")))


class Runner:
    """Runs bench_gpu_contenders.py, a process a call."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self.folder, self.timeout = folder, timeout

    def __call__(self, name: str, settings: Result) -> Result:
        """Return the result of one piece of work; tells on stderr what it took.

        Raises:
            ChildError: it failed, or took longer than the limit.
        """
        file = self.folder / "settings.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        began = time.time()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), name, str(file)],
                cwd=self.folder,
                env=self._environment(began, name),
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
            try:
                process.wait(self.timeout)
            except subprocess.TimeoutExpired as error:
                raise ChildError(f"took longer than {self.timeout:g} s (--per-contender-timeout)") from error
            finally:
                _end(process)
            print(f"bench_gpu: {name}: {time.time() - began:.0f} s, status {process.returncode}", file=sys.stderr)
            out.seek(0)
            errors.seek(0)
            if process.returncode:
                raise ChildError(last_line(errors.read()) or f"status {process.returncode}")
            result: Result = json.loads(out.read().splitlines()[-1])
            return result

    def _environment(self, began: float, name: str) -> dict[str, str]:
        """Return a child's environment: no hub, no telemetry, compiled code in a folder of this contender."""
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        compiled = self.folder / "compiled" / WARM.get(name, name)
        return {
            **os.environ,
            "BENCH_STARTED": str(began),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TOMETUNE_CACHE": str(self.folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
            "TRITON_CACHE_DIR": str(compiled / "triton"),
            "UNSLOTH_COMPILE_LOCATION": str(compiled / "unsloth"),
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "UNSLOTH_AUTO_INSTALL": "0",
        }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that still runs: first by a signal on which it ends what it started itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(text: str) -> str:
    """Return the last line of an error's text that is not empty."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1] if said else ""


def write(path: Path | None, report: Result) -> None:
    """Write the report, whole or not at all."""
    if path is not None:
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        part.replace(path)


if __name__ == "__main__":
    main()
