"""Measure one training on 1, 2, … GPUs of this machine (torchrun, NCCL), and a sweep of nine runs over them (ray).

python scripts/bench_scaling.py --gpus 1,2 --json scaling.json --base base.parquet --pool pool.parquet

Every training makes the same steps of 16,384 tokens, however many GPUs share them. With several GPUs it runs twice, to
compare the bytes. The sweep runs on one GPU without ray, and then on all. Models have real shapes and random weights.
The JSON file is written after each part; a part that fails is named in it, and the others continue.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench_gpu import ROOT, WORKER, gpu_name, last_line, write
from bench_gpu_model import data_overrides

from tometune.runs.run import git_state, versions

Result = dict[str, Any]

MODELS = {"llama32_3b": (48, 4), "smollm2_135m": (160, 10)}
"""Shapes, their steps, and the steps from one logged line to the next. The 3B is in 4 bits, as by default."""

WARM_UP = 2  # logged lines that do not count: the first steps compile
CELLS = ("data.rows=3000,6000,9000", "seed=0,1,2", "sweep.name=scaling")
REHEARSAL = ("trainer.tokens_per_step=512", "trainer.max_length=128")


def main() -> None:
    """Measure part after part, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--gpus", default="1,2", help="numbers of GPUs; the smallest is what the others are compared with")
    add("--base", type=Path, help="parquet file of conversations (default: Python's documentation)")
    add("--pool", type=Path, help="parquet file that two thirds of the rows are drawn from")
    add("--rows", type=int, default=12_000, help="conversations of the trainings; at least 3,000")
    add("--parts", default=f"{','.join(MODELS)},sweep", help="which parts, in this order")
    add("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write all results here, after each part")
    add("--rehearse", action="store_true", help="tiny models in processes on a CPU; the figures mean nothing")
    options = parser.parse_args()
    if gpu_name() is None and not options.rehearse:
        print("bench_scaling: there is no GPU here; --rehearse tries the script out on a CPU", file=sys.stderr)
        sys.exit(2)
    git = git_state()
    report: Result = {
        "commit": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}",
        "gpu": gpu_name() or "none: a rehearsal, the figures mean nothing",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "cores": os.cpu_count(),
        "NCCL_NVLS_ENABLE": os.environ.get("NCCL_NVLS_ENABLE"),
    }
    with tempfile.TemporaryDirectory(prefix="tometune-scaling-", ignore_cleanup_errors=True) as name:
        bench = Scaling(options, (options.folder or Path(name)).resolve())
        for part in options.parts.split(","):
            try:
                report[part] = bench.sweep() if part == "sweep" else bench.model(part)
            except (RuntimeError, ValueError, OSError) as error:
                report[part] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{part}: {json.dumps({k: v for k, v in report[part].items() if k != 'runs'}, indent=1)}", flush=True)
            write(options.json, report)


class Scaling:
    """The measurements, below one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.gpus = sorted({int(number) for number in options.gpus.split(",")})
        settings = {"base": options.base, "pool": options.pool, "rows": 3000}  # the smallest of the sweep's mixes
        self.data = [each for each in data_overrides(settings) if not each.startswith("data.rows=")]
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, shape: str) -> Result:
        """Train a model on each number of GPUs, and compare speed, losses, bytes and the base model's answers."""
        found: Result = {}
        for gpus in self.gpus:
            for repetition in range(1 if gpus == 1 else 2):
                found[f"{gpus}{'_again' * repetition}"] = self.training(shape, gpus, f"{shape}-{gpus}-{repetition}")
        first, result = found[str(self.gpus[0])], Result()
        for gpus in self.gpus[1:]:
            one, again = found[str(gpus)], found[f"{gpus}_again"]
            off = [abs(a / b - 1) for a, b in zip(one["losses"], first["losses"], strict=True)]
            same = [one["answers"][task] == digest for task, digest in first["answers"].items()]
            result[f"{gpus} GPUs"] = {
                "times as fast": round(one["tokens_per_second"] / first["tokens_per_second"], 3),
                "times as fast, again": round(again["tokens_per_second"] / first["tokens_per_second"], 3),
                "largest difference of a loss": round(max(off), 6),
                "same bytes again": one["adapter"] == again["adapter"] and one["answers"] == again["answers"],
                "tasks with the same answers of the base model as one GPU": f"{sum(same)} of {len(same)}",
            }
        speeds = {name: round(run["tokens_per_second"]) for name, run in found.items()}
        return {"tokens_per_second": speeds, **result, "runs": found}

    def training(self, shape: str, gpus: int, name: str) -> Result:
        """Train once; returns the median speed after the warm-up, the losses and digests of what was written."""
        outputs = self.folder / name
        steps, logging = (12, 2) if self.options.rehearse else MODELS[shape]
        numbers = [f"trainer.max_steps={steps}", f"trainer.logging_steps={logging}", f"data.rows={self.options.rows}"]
        command = ["-m", "tometune.train", *self.overrides(shape), *numbers, f"paths.outputs={outputs}"]
        if gpus > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", *command]
        seconds = self.run(name, command, gpus)
        (run,) = (path.parent for path in outputs.glob("*/run.json"))  # of all processes together
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return {
            "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines[WARM_UP:]),
            "seconds": round(seconds, 1),
            "losses": [line["loss"] for line in lines],
            "adapter": _digest(run / "adapter" / "adapter_model.safetensors"),
            "answers": {path.stem: _digest(path) for path in sorted(run.glob("eval/base/*.jsonl"))},
            "scores": {which: record["eval"][which]["rougeL"] for which in ("base", "tuned")},
            **{key: record["train"][key] for key in ("micro_batch", "effective_batch", "attention", "deterministic")},
            **{key: record["train"][key] for key in ("peak_memory_bytes", "estimated_memory_bytes")},
        }

    def overrides(self, shape: str) -> list[str]:
        """Return the overrides of a training, but for its rows and steps; its model is made first if need be."""
        model, rehearse = self.folder / "models" / shape, self.options.rehearse
        if not model.exists():
            settings = self.folder / "settings.json"
            settings.write_text(json.dumps({"shape": "tiny" if rehearse else shape, "model": str(model)}))
            self.run(f"make-{shape}", [str(WORKER), "model", str(settings)], 1)
        chosen = ["model=tiny", *REHEARSAL] if rehearse else [f"model={shape}"]
        common = ("eval=pydocs", "eval.limit=16", "tracking=none", "trainer.save_steps=1000000")
        return [*chosen, f"model.id={model}", "model.weights=pretrained", *self.data, *common]

    def sweep(self) -> Result:
        """Make the same nine runs one after the other on one GPU, and side by side on all."""
        most, found = max(self.gpus), dict[str, Result]()
        launcher = ["hydra/launcher=ray_local", f"+hydra.launcher.ray.init.num_cpus={max(most, 4)}"]
        launcher += ["hydra.launcher.ray.remote.num_gpus=0"] if self.options.rehearse else []
        for name, gpus, how in (("one", 1, []), ("ray", most, launcher)):
            folder = self.folder / f"sweep-{name}"
            overrides = [*self.overrides("smollm2_135m"), *CELLS, f"paths.multirun={folder}", *how]
            overrides += ["trainer.max_steps=8"] if self.options.rehearse else []
            seconds = self.run(f"sweep-{name}", ["-m", "tometune.train", "-m", *overrides], gpus)
            records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/run.json"))]
            found[name] = {
                "seconds": round(seconds, 1),
                "runs": [
                    {key: record[key] for key in ("run_id", "status", "attempts", "started", "finished")}
                    | {"files": _files(folder, record["run_id"])}
                    for record in records
                ],
            }
        one, ray = found["one"]["runs"], found["ray"]["runs"]
        return {
            "runs on one GPU and with ray": [len(one), len(ray)],
            "attempts per run, at most": max(run["attempts"] for run in ray),
            "same bytes": [run["files"] for run in one] == [run["files"] for run in ray],
            "seconds": {name: each["seconds"] for name, each in found.items()},
            **_ends(ray, most),
            "runs": found,
        }

    def run(self, name: str, command: list[str], gpus: int) -> float:
        """Run python with so many GPUs visible, with caches of its own and output in `<name>.log`; returns seconds."""
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "TOMETUNE_CACHE": str(self.folder / "cache" / name),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled" / "inductor"),
            "TRITON_CACHE_DIR": str(self.folder / "compiled" / "triton"),
            "HF_HUB_OFFLINE": "1",
        }
        if not self.options.rehearse:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
        start = time.perf_counter()
        with (self.folder / f"{name}.log").open("w") as log:
            status = subprocess.run(
                [sys.executable, *command], env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT
            )
        seconds = time.perf_counter() - start
        print(f"bench_scaling: {name}: {seconds:.0f} s, status {status.returncode}", file=sys.stderr, flush=True)
        if status.returncode:
            text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{name}: status {status.returncode}: {last_line(text)}")
        return seconds


def _ends(runs: list[Result], gpus: int) -> Result:
    """Return how long each GPU was idle at the end, next to the longest run, from when runs started and finished."""
    times = sorted([datetime.fromisoformat(run[key]).timestamp() for key in ("started", "finished")] for run in runs)
    free = [times[0][0]] * gpus  # since when each GPU is free; a run takes the one that has been free for longest
    for _, end in times:
        free[free.index(min(free))] = end
    longest = max(end - start for start, end in times)
    return {"idle at the end": [round(max(free) - each, 1) for each in free], "longest run": round(longest, 1)}


def _files(folder: Path, run_id: str) -> dict[str, str]:
    """Return the digests of a run's adapter and answers."""
    (run,) = folder.glob(f"*/{run_id}")
    paths = [run / "adapter" / "adapter_model.safetensors", *sorted(run.glob("eval/tuned/*.jsonl"))]
    return {str(path.relative_to(run)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
