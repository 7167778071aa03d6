"""Measure the default recipe as a user runs it: `tometune.train -m +sweep=table`, then export and chat, against a hub.

python scripts/recipe_3b.py FOLDER make --base base_100k.parquet --pool pool.parquet --tasks EVAL_FOLDER
python scripts/recipe_3b.py FOLDER cell seed=0 --kill-at 130 --stop-in-cell 2    # killed at step 130, and resumed
python scripts/recipe_3b.py FOLDER undisturbed seed=0 data=mix_100k --stop-at 200
python scripts/recipe_3b.py FOLDER export; … FOLDER chat; … FOLDER plan; … FOLDER report

Everything is kept below FOLDER: the hub, fresh caches, the runs, and in `out` the logs, samples and events. KEY=VALUE
are overrides for tometune. Each stage can be repeated; `report` writes out/report.json and recipe_3b.tar.xz.
"""

import argparse
import csv
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

import recipe_3b_inputs as inputs
from recipe_3b_report import write_report

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("make", "cell", "undisturbed", "export", "chat", "plan", "report")
PROMPT = "What is the capital of France? Answer in one sentence.\n"


def main() -> None:
    """Run one stage."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `execute` ends what it started
    options = command_line()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "make":
        facts = inputs.make_inputs(options)
        (options.out / "inputs.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    elif options.stage == "report":
        print(write_report(options.folder))
    else:
        with inputs.serve(options.folder) as hub:
            options.env = environment(hub.env(options.folder / "hf"), options.folder)
            sys.exit(run_stage(options))


def command_line(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("folder", type=lambda text: Path(text).absolute())
    add("stage", choices=STAGES)
    add("overrides", nargs="*", metavar="KEY=VALUE", help="for tometune")
    add("--timeout", type=float, default=3600, metavar="SECONDS", help="of the stage; its processes are killed then")
    add("--kill-at", type=int, metavar="STEP", help="cell: SIGKILL once, then the same command again")
    add("--stop-in-cell", type=int, metavar="N", help="cell: SIGKILL as soon as the Nth run logs a new step")
    add(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="undisturbed: SIGKILL as soon as the checkpoint of this step is read",
    )
    add("--formats", default="adapter,merged_16bit,gguf", help="export: without gguf where llama.cpp is missing")
    add("--base", type=Path, help="make: parquet file with FineTome's columns")
    add("--pool", type=Path, help="make: parquet file with The-Tome's columns")
    add("--tasks", type=Path, help="make: folder with the four JSONL files of tasks")
    add("--base-rows", type=int, default=100_000, help="make: rows of the base")
    add("--pool-rows", type=int, default=inputs.POOL_ROWS, help="make: rows of the pool, copied with numbers")
    add("--seconds", type=float, default=170, help="make: training of the model's weights")
    add("--rate", type=float, default=3e-4, help="make: peak learning rate of that training")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="make: compile the layers for it")
    add("--small", action="store_true", help="make: a small shape, to try the script out without a GPU")
    options = parser.parse_intermixed_args(arguments)
    options.out = options.folder / "out"
    if options.stage == "make" and not (options.base and options.pool and options.tasks):
        parser.error("make: needs --base, --pool and --tasks")
    return options


def environment(hub: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of the measured commands, with every cache below the folder."""
    paths = {
        "TOMETUNE_CACHE": "cache",
        "TORCHINDUCTOR_CACHE_DIR": "compilers/inductor",
        "TRITON_CACHE_DIR": "compilers/triton",
    }
    found = {name: str(folder / path) for name, path in paths.items()}
    python = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **hub, **found, "HF_HUB_OFFLINE": "0", "PYTHONPATH": python, "PYTHONUNBUFFERED": "1"}


def run_stage(options: argparse.Namespace) -> int:
    """Run the commands of a stage; return the exit status of the last one."""
    train = ["train", "-m", "+sweep=table", *options.overrides]
    hashes = options.out / "undisturbed_adapters.jsonl"
    work = options.folder / ("undisturbed" if options.stage == "undisturbed" else "work")
    if options.stage == "undisturbed":  # from the beginning
        shutil.rmtree(work, ignore_errors=True)
        hashes.unlink(missing_ok=True)
    work.mkdir(exist_ok=True)
    if options.stage == "cell":
        if options.kill_at and not (options.out / "cell_1.log").exists():
            execute(options, "cell_1", train, work, stop=lambda: max(steps_reached(work), default=0) >= options.kill_at)
        cells, before = options.stop_in_cell or 10**9, sum(steps_reached(work))

        def stop() -> bool:  # not on what the command found when it was repeated
            reached = steps_reached(work)
            return len(reached) >= cells and sum(reached) > before

        return execute(options, "cell_2", train, work, stop=stop)
    if options.stage == "undisturbed":
        return execute(
            options, "undisturbed", train, work, stop=lambda: last_hashed(hashes) >= (options.stop_at or 10**9)
        )
    if options.stage == "plan":
        return execute(options, "plan", [*train, "plan=true"], work)
    runs = [path.parent for path in work.glob("multirun/table/*/run.json") if '"completed"' in path.read_text()]
    if not runs:
        print("recipe_3b: no run is completed", file=sys.stderr)
        return 1
    run = f"run={sorted(runs)[0].relative_to(work)}"
    if options.stage == "export":
        formats = ["export", run, f"format=[{options.formats}]", "quant=q4_k_m", *options.overrides]
        return execute(options, "export", formats, work)
    return execute(options, "chat", ["chat", run, "ui=terminal", *options.overrides], work, stdin=PROMPT)


def execute(
    options: argparse.Namespace,
    name: str,
    words: list[str],
    work: Path,
    stop: Callable[[], bool] = lambda: False,
    stdin: str = "",
) -> int:
    """Run a verb in a session of its own, with its output and samples logged; SIGKILL for all of it where `stop` says.

    A command that takes longer than the stage's timeout is killed, too. Returns the exit status.
    """
    command = [sys.executable, "-m", f"tometune.{words[0]}", *words[1:]]
    event: dict[str, Any] = {"name": name, "command": ["python", *command[1:]], "start": time.time(), "killed": None}
    print(f"recipe_3b: {name}: {' '.join(event['command'])}", flush=True)
    process = subprocess.Popen(
        command,
        cwd=work,
        env=options.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    assert process.stdin is not None
    reader = threading.Thread(target=copy_lines, args=(process, options.out / f"{name}.log"), daemon=True)
    reader.start()
    with suppress(BrokenPipeError):
        process.stdin.write(stdin)
        process.stdin.close()
    samples, adapters, seen = (
        Samples(options.out / f"{name}_samples.csv", options.folder),
        options.out / f"{name}_adapters.jsonl",
        set[str](),
    )
    try:
        while process.poll() is None:
            late = time.time() - event["start"] > options.timeout
            if late or stop():
                event["killed"] = "timeout" if late else "on purpose"
                break
            samples.take(process.pid)
            hash_adapters(work, seen, adapters)
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever is left of it
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    event |= {"end": time.time(), "status": process.returncode}
    reader.join(10)
    hash_adapters(work, seen, adapters)
    with (options.out / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    print(f"recipe_3b: {name}: status {event['status']}, {event['end'] - event['start']:.0f} s", flush=True)
    return 124 if event["killed"] == "timeout" else 0 if event["killed"] else int(process.returncode or 0)


def copy_lines(process: "subprocess.Popen[str]", path: Path) -> None:
    """Write each line of a process with the time at which it came."""
    assert process.stdout is not None
    with path.open("a", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(f"{time.time():.3f} {line}")
            file.flush()


def steps_reached(work: Path) -> list[int]:
    """Return the last step in each run's metrics.jsonl; a run without a step is left out."""
    files = work.glob("multirun/table/*/metrics.jsonl")
    found = (max([0, *(line["step"] for line in json_lines(path))]) for path in files)
    return [step for step in found if step]


def last_hashed(path: Path) -> int:
    """Return the last step whose adapter was hashed."""
    return max([0, *(line["step"] or 0 for line in json_lines(path))])


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that another process may be writing."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)


def hash_adapters(work: Path, seen: set[str], path: Path) -> None:
    """Write the sha256 of the adapter in each new checkpoint, and of the finished adapter (step null)."""
    places = ("checkpoints/checkpoint-*/adapter_model.safetensors", "adapter/adapter_model.safetensors")
    for file in [found for place in places for found in work.glob(f"multirun/table/*/{place}")]:
        with suppress(OSError):  # deleted meanwhile
            key = f"{file}{file.stat().st_mtime_ns}"
            if key in seen:
                continue
            with file.open("rb") as content:
                digest = file_digest(content, "sha256").hexdigest()
            seen.add(key)
            number = file.parent.name.removeprefix("checkpoint-")
            run = file.relative_to(work / "multirun" / "table").parts[0]
            with path.open("a", encoding="utf-8") as lines:
                step = int(number) if number.isdecimal() else None
                lines.write(json.dumps({"run": run, "step": step, "sha256": digest}) + "\n")


class Samples:
    """One line per second: time, GPU utilisation in percent; bytes of GPU memory, of the processes and of used disk.

    GPU and disk are those of the machine, the processes those of one command.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder, self.last = path, folder, 0.0
        self.nvml = self.device = None
        with suppress(OSError, AttributeError):
            nvml, device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
            find = nvml.nvmlDeviceGetHandleByIndex_v2 if visible.isdecimal() else nvml.nvmlDeviceGetHandleByUUID
            which = ctypes.c_uint(int(visible)) if visible.isdecimal() else ctypes.c_char_p(visible.encode())
            if not nvml.nvmlInit_v2() and not find(which, ctypes.byref(device)):
                self.nvml, self.device = nvml, device

    def take(self, group: int) -> None:
        """Write a line, if the last one is a second old. `group` is the process group that is measured."""
        if time.time() - self.last < 1:
            return
        self.last = time.time()
        row = [f"{self.last:.2f}", *self.gpu(), resident_bytes(group), shutil.disk_usage(self.folder).used]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)

    def gpu(self) -> tuple[int | str, int | str]:
        """Return utilisation and used memory; empty where the driver does not tell."""
        rates, memory = (ctypes.c_uint * 2)(), (ctypes.c_ulonglong * 3)()  # gpu, memory; total, free, used
        if self.nvml is None:
            return "", ""
        busy = "" if self.nvml.nvmlDeviceGetUtilizationRates(self.device, ctypes.byref(rates)) else rates[0]
        return busy, "" if self.nvml.nvmlDeviceGetMemoryInfo(self.device, ctypes.byref(memory)) else memory[2]


def resident_bytes(group: int) -> int:
    """Return the resident memory of a session's processes; pages that several of them share count several times."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            if session == group:
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


if __name__ == "__main__":
    main()
