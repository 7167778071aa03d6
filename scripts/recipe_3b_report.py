"""The tables of recipe_3b.py: seconds, idle GPU, memory and disk by phase, nine cells projected, and hashes."""

import csv
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

KEPT = ("run.json", "metrics.jsonl", "mix.json", "config.yaml", "train.log", "gate.json")
PACK_LIMIT = 15_000_000  # bytes of a file that is packed
GIGA = 1e9
ONCE = ("start", "base", "report")  # phases that a sweep has once


@dataclass(frozen=True)
class Phase:
    """A stretch of time of one command; times in seconds since 1970."""

    command: str
    name: str
    start: float
    end: float
    cell: int | None = None  # 1 is the cell that was completed, 2 the one after it

    @property
    def seconds(self) -> float:
        return self.end - self.start


def write_report(folder: Path) -> str:
    """Write report.json, report.txt and the archive of everything that is small; return the text."""
    out = folder / "out"
    events = [json.loads(line) for line in lines_of(out / "events.jsonl")]
    samples = {event["name"]: read_samples(out / f"{event['name']}_samples.csv") for event in events}
    records = {
        path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("work/multirun/table/*/run.json"))
    }
    phases = [phase for event in events for phase in phases_of(event, out, records)]
    done = max(map(end_of, records.values()), default=0.0)
    phases = [
        replace(phase, cell=2) if phase.command.startswith("cell") and phase.start >= done > 0 else phase
        for phase in phases
    ]
    cells = [phase for phase in phases if phase.cell == 1]
    whole = sum(phase.seconds for phase in cells)
    report: dict[str, Any] = {
        "phases": [measured(phase, samples[phase.command], whole) for phase in phases],
        "cell_seconds": round(whole, 1),
        "by_phase": by_phase(cells, whole),
        "runs": [facts_of(record) for record in records.values()],
        "disk": {name: size_of(folder / name) for name in ("hub", "hf", "cache", "compilers", "work", "undisturbed")},
        "exports": [
            json.loads(path.read_text()) for path in sorted(folder.glob("work/multirun/table/*/export/*/gate.json"))
        ],
        "projection": projection(phases, records, out / "plan.log"),
        "same_bytes": compare_adapters(out),
        "commands": [{key: event[key] for key in ("name", "command", "status", "killed")} for event in events],
    }
    text = "\n".join(text_lines(report))
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    pack(folder, out)
    return text


def end_of(record: Mapping[str, Any]) -> float:
    """Return when a completed run's last phase ended; 0 for other runs."""
    if record["status"] != "completed":
        return 0.0
    last = record["phases"][-1]
    return float(datetime.fromisoformat(last["started"]).timestamp() + last["seconds"])


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text; none if it does not exist."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def read_samples(path: Path) -> list[list[float | None]]:
    """Return time, GPU utilisation (percent), GPU memory, host memory and used disk of each sample."""
    return [[float(value) if value else None for value in row] for row in csv.reader(lines_of(path))]


def phases_of(event: Mapping[str, Any], out: Path, records: Mapping[Path, Any]) -> Iterator[Phase]:
    """Yield the phases of a command: those in run.json, training in two parts, and the time between them."""
    name, start, end = event["name"], event["start"], event["end"]
    if not name.startswith("cell"):
        yield Phase(name, name, start, end)
        return
    log = [line.split(" ", 1) for line in lines_of(out / f"{name}.log")]
    first_step = [float(when) for when, text in log if text.startswith("training: ")]
    recorded = sorted(
        (datetime.fromisoformat(entry["started"]).timestamp(), entry["phase"], entry["seconds"])
        for record in records.values()
        for entry in record.get("phases", [])
    )
    now, last = start, "start"
    for began, phase, seconds in recorded:
        if not start <= began <= end:
            continue
        if began - now > 0.05:
            yield Phase(name, "start" if now == start else "between", now, began, 1)
        now, last = min(began + seconds, end), phase
        yield from divided(name, phase, began, now, first_step)
    if last in ("load", "base") and event["killed"]:
        yield from divided(name, "train", now, end, first_step)
    elif end - now > 0.05:
        yield Phase(name, "interrupted" if event["killed"] else "report", now, end, 1)


def divided(command: str, phase: str, start: float, end: float, first_steps: Sequence[float]) -> Iterator[Phase]:
    """Yield the phase; training as its preparation (loading, Unsloth, the micro-batch) and the rest."""
    middle = next((time for time in first_steps if start < time < end), None) if phase == "train" else None
    if middle is None:
        yield Phase(command, phase, start, end, 1)
    else:
        yield Phase(command, "prepare training", start, middle, 1)
        yield Phase(command, "train", middle, end, 1)


def measured(phase: Phase, samples: Sequence[Sequence[float | None]], whole: float) -> dict[str, Any]:
    """Return what was sampled in a phase; None where nothing was.

    Peaks ignore the first second, when memory of the previous phase may still be in use.
    """
    during = [row for row in samples if row[0] is not None and phase.start <= row[0] <= phase.end]
    busy = [row[1] for row in during if row[1] is not None]
    settled = [row for row in during if row[0] is not None and row[0] >= phase.start + 1]
    gpu, host, disk = ([value for row in settled if (value := row[place]) is not None] for place in (2, 3, 4))
    return {
        "command": "next_cell" if phase.cell == 2 else phase.command,
        "phase": phase.name,
        "seconds": round(phase.seconds, 1),
        "share_of_cell": round(phase.seconds / whole, 4) if whole and phase.cell == 1 else None,
        "gpu_idle": round(1 - fmean(busy) / 100, 3) if busy else None,
        "gpu_peak_gb": round(max(gpu) / GIGA, 2) if gpu else None,
        "host_peak_gb": round(max(host) / GIGA, 2) if host else None,
        "disk_peak_gb": round(max(disk) / GIGA, 2) if disk else None,
        "samples": len(during),
    }


def by_phase(cells: Sequence[Phase], whole: float) -> dict[str, dict[str, float]]:
    """Return seconds and share of the cell's time of each phase, over all of its commands."""
    totals: dict[str, float] = {}
    for phase in cells:
        totals[phase.name] = totals.get(phase.name, 0.0) + phase.seconds
    return {name: {"seconds": round(value, 1), "share": round(value / whole, 4)} for name, value in totals.items()}


def facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run itself says of its speed and memory; generation apart from likelihoods and metrics."""
    train = record.get("train") or {}
    kept = ("steps", "tokens", "seconds", "tokens_per_second", "micro_batch", "final_loss")
    bytes_ = ("peak_memory_bytes", "estimated_memory_bytes")
    generation = {
        stage: {"seconds": scores["seconds"], "tokens_per_second": scores["tokens_per_second"]}
        | {"reused": [name for name, task in scores["tasks"].items() if task.get("reused")], "rougeL": scores["rougeL"]}
        for stage, scores in record["eval"].items()
    }
    about = {key: record[key] for key in ("run_id", "status", "attempts", "model", "data", "versions", "git")}
    return about | {"train": {key: train.get(key) for key in (*kept, *bytes_)}, "generation": generation}


def size_of(folder: Path) -> float:
    """Return the gigabytes of a folder's files."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return round(sum(path.stat().st_size for path in files) / GIGA, 3)


def projection(phases: Sequence[Phase], records: Mapping[Path, Any], plan: Path) -> dict[str, Any] | None:
    """Return the hours of the cells that are left by the measured ones, next to the plan's, and of all nine.

    A later cell takes the seconds before training of the cell that followed in the same process, or of the last command
    if there was none, its own tokens at the measured speed, and the seconds after training of the completed cell. The
    phases in `ONCE` count once. None without a completed cell or a plan.
    """
    done = [record for record in records.values() if record["status"] == "completed"]
    text = " ".join(line.split(" ", 1)[-1] for line in lines_of(plan))
    planned = next(reversed(re.findall(r"([\d.]+) (s|min|h) one after the other", text)), None)
    found = next(reversed(re.findall(r"(\d+) left with ([\d,]+) tokens", text)), None)
    cells = [phase for phase in phases if phase.cell == 1]
    if not done or not cells or not found:
        return None
    following = [phase for phase in phases if phase.cell == 2]
    if not any(phase.name == "train" for phase in following):  # stopped before that, or no cell at all
        following = []
    last = [phase for phase in cells if phase.command == cells[-1].command]
    trained = max((phase.end for phase in last if phase.name == "train"), default=0.0)
    before = [p for p in following or last if p.name not in (*ONCE, "train") and (following or p.start < trained)]
    own = sum(phase.seconds for phase in [*before, *(p for p in last if p.start >= trained and p.name not in ONCE)])
    # Of a run that was killed, the last command holds a part of the steps only; run.json has all of them.
    speed = fmean(record["train"]["tokens_per_second"] for record in done)
    left, tokens = int(found[0]), int(found[1].replace(",", ""))
    seconds = left * own + tokens / speed
    once = {name: max((phase.seconds for phase in cells if phase.name == name), default=0.0) for name in ONCE}
    whole = seconds + sum(once.values()) + len(done) * own + sum(r["train"]["tokens"] for r in done) / speed
    forecast = float(planned[0]) * {"s": 1, "min": 60, "h": 3600}[planned[1]] if planned else None
    return {
        "cells_left": left,
        "tokens_left": tokens,
        "seconds_once": round(sum(once.values()), 1),
        "other_seconds_per_cell": round(own, 1),
        "projected_hours": round(whole / 3600, 3),
        "projected_hours_left": round(seconds / 3600, 3),
        "planned_hours_left": forecast and round(forecast / 3600, 3),
        "planned_by_projected": forecast and round(forecast / seconds, 3),
        "plan": " ".join(planned) if planned else None,
    }


def compare_adapters(out: Path) -> dict[str, Any]:
    """Return the two hashes of each adapter that both the killed and the undisturbed run wrote."""
    found: dict[str, dict[tuple[str, Any], str]] = {}
    for path in sorted(out.glob("*_adapters.jsonl")):
        for line in map(json.loads, lines_of(path)):
            kind = "undisturbed" if path.name.startswith("undisturbed") else "killed"
            found.setdefault(kind, {})[line["run"], line["step"]] = line["sha256"]
    killed, undisturbed = found.get("killed", {}), found.get("undisturbed", {})
    return {
        f"{run} {'finished' if step is None else step}": [
            killed[run, step],
            undisturbed[run, step],
        ]
        for run, step in killed
        if (run, step) in undisturbed
    }


def text_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as text."""
    columns = (
        "command",
        "phase",
        "seconds",
        "share_of_cell",
        "gpu_idle",
        "gpu_peak_gb",
        "host_peak_gb",
        "disk_peak_gb",
    )
    yield " ".join(f"{name:>16}" for name in columns)
    for row in report["phases"]:
        yield " ".join(f"{'' if row[name] is None else row[name]:>16}" for name in columns)
    for name in ("cell_seconds", "by_phase", "projection", "same_bytes", "disk"):
        yield f"{name}: {json.dumps(report[name])}"
    for run in report["runs"]:
        yield f"run: {json.dumps({key: run[key] for key in ('run_id', 'status', 'attempts', 'train', 'generation')})}"
    trained = sum(run["train"]["tokens"] or 0 for run in report["runs"] if run["status"] == "completed")
    if report["cell_seconds"]:
        yield f"tokens/s over all commands of the completed cells: {trained / report['cell_seconds']:.0f}"
    for gate in report["exports"]:
        yield f"export {gate['format']} {gate['quant']}: passed {gate['passed']}, {gate['seconds']}, {gate['problems']}"


def pack(folder: Path, out: Path) -> None:
    """Write recipe_3b.tar.xz with `out` and the small files of each run."""
    for run in sorted(folder.glob("*/multirun/table/*/")):
        for path in (path for path in run.rglob("*") if path.name in KEPT and "checkpoints" not in path.parts):
            target = out / "runs" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    with tarfile.open(folder / "recipe_3b.tar.xz", "w:xz") as archive:
        for path in sorted(out.rglob("*")):
            with suppress(OSError):
                if path.is_file() and path.stat().st_size < PACK_LIMIT:
                    archive.add(path, path.relative_to(folder))
