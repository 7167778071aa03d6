"""Two sweep folders as training leaves them, with scores from a seeded generator."""

import json
import random
from pathlib import Path
from typing import Any

METRICS = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.32}
TASKS = ("question_answering", "summarisation")
EXAMPLES = 12


def write_sweeps(parent: Path) -> list[Path]:
    """Write a sweep over the size of the data in which more helps, and one over the adapter's rank with gaps."""
    sizes, ranks = parent / "sizes", parent / "ranks"
    for size in (1, 2, 3):
        for seed in range(3):
            write_run(sizes, f"tiny-mix_{size}k-s{seed}", f"mix_{size}k", 1000 * size, seed, 0.05 * size)
    for rank in (4, 16):
        for seed in range(2):
            write_run(ranks, f"tiny-mix_1k-s{seed}-r{rank}", "mix_1k", 1000, seed, 0.002 * rank, rank)
    failed = ranks / "tiny-mix_1k-s2-r4"
    failed.mkdir()
    record = {"schema": 1, "run_id": failed.name, "status": "failed", "error": "RuntimeError: out of memory"}
    (failed / "run.json").write_text(json.dumps(record))
    absent = {"run_id": "tiny-mix_1k-s2-r16", "overrides": ["lora.r=16", "seed=2"], "model": "tiny", "data": "mix_1k"}
    done = [{"run_id": path.name, "overrides": []} for path in sorted(ranks.iterdir())]
    (ranks / "sweep.json").write_text(json.dumps({"schema": 1, "cells": [*done, {**absent, "seed": 2}]}))
    return [sizes, ranks]


def write_run(sweep: Path, name: str, data: str, rows: int, seed: int, gain: float, rank: int = 16) -> None:
    """Write a completed run: config.yaml with what differs from the defaults, run.json, the scored answers."""
    folder = sweep / name
    folder.mkdir(parents=True)
    streams = ", ".join(f"{stream}: {seed}" for stream in ("data", "order", "adapter", "generation"))
    (folder / "config.yaml").write_text(
        f"model: {{name: tiny, id: tiny}}\ndata: {{name: {data}, rows: {rows}}}\nlora: {{r: {rank}}}\n"
        f"seed: {seed}\nseeds: {{{streams}}}\n"
    )
    stages = {"base": write_stage(folder, "base", 0.0, "base"), "tuned": write_stage(folder, "tuned", gain, name)}
    train = {"steps": 10, "tokens": rows * 90, "seconds": 9.0, "tokens_per_second": 300.0, "final_loss": 1.5 - gain}
    record = {
        "schema": 1,
        "run_id": name,
        "status": "completed",
        "config_hash": name,
        "seed": seed,
        "model": {"name": "tiny", "id": "test/tiny", "revision": "1", "backend": "x", "quantization": "none"},
        "data": {"name": data, "rows": rows, "digest": data, "tokens": rows * 100, "trainable_tokens": rows * 40},
        "train": {**train, "peak_memory_bytes": 10**9},
        "eval": stages,
        "versions": {"tometune": "0"},
        "git": {"commit": "0" * 40, "dirty": False},
        "started": "2026-11-24T12:00:00+00:00",
        "finished": "2026-11-24T12:10:00+00:00",
        "attempts": 1,
    }
    (folder / "mix.json").write_text(json.dumps({"name": data, "seed": seed, "rows": rows, "sources": {"a": rows}}))
    curve = [{"step": step, "loss": 2 - step / 20, "tokens_per_second": 300.0} for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    (folder / "run.json").write_text(json.dumps(record))


def write_stage(folder: Path, stage: str, gain: float, seed: str) -> dict[str, Any]:
    """Write the answers of each task with their scores; returns what run.json says of the stage."""
    generator = random.Random(seed)
    where = folder / "eval" / stage
    where.mkdir(parents=True)
    tasks: dict[str, Any] = {}
    for task in TASKS:
        answers = []
        for number in range(EXAMPLES):
            level = gain + 0.01 * number
            scores = {metric: round(start + level + generator.gauss(0, 0.02), 6) for metric, start in METRICS.items()}
            answer = {"id": f"{task}-{number}", "prompt": "?", "prediction": "!", "references": [f"reference {number}"]}
            answers.append({**answer, "scores": scores, "tokens": 5 + number})
        (where / f"{task}.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        means = {metric: sum(answer["scores"][metric] for answer in answers) / EXAMPLES for metric in METRICS}
        tasks[task] = {**means, "examples": EXAMPLES, "tokens": sum(answer["tokens"] for answer in answers)}
    means = {metric: sum(task[metric] for task in tasks.values()) / len(TASKS) for metric in METRICS}
    return {**means, "tasks": tasks, "limited": False}
