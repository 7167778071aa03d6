"""Sweep folders as training would leave them, with scores of a known truth, in milliseconds."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from omegaconf import OmegaConf

from tometune.config.root import Config
from tometune.runs.identity import plain

TASKS = ("data_to_text", "instruction_following", "question_answering", "summarisation")
METRICS = {"rouge1": 0.0, "rouge2": -0.22, "rougeL": -0.08}


@cache
def defaults() -> dict[str, Any]:
    return plain(Config())


def write_stage(folder: Path, stage: str, level: float, examples: int, noise: float, names: Sequence[str]) -> dict:
    """Write `eval/<stage>/<task>.jsonl` and return what run.json says of the stage.

    Hard examples are hard for every run, and each run adds its own noise.
    """
    where = folder / "eval" / stage
    where.mkdir(parents=True)
    run = f"{folder.name} {stage}" if stage == "tuned" else stage
    tasks = {}
    for number, task in enumerate(names):
        hard = np.random.default_rng([number, 1]).normal(0, 0.12, examples)
        own = np.random.default_rng([number, *run.encode()]).normal(0, noise, examples)
        values = {
            metric: np.clip(level + shift + 0.05 * number + hard + own, 0, 1) for metric, shift in METRICS.items()
        }
        rows = [
            {
                **{"id": f"{task}-{example}", "references": [f"reference {example}"]},
                "scores": {metric: float(values[metric][example]) for metric in METRICS},
                **{"prompt": "?" * 300, "prediction": "!" * 100, "tokens": 20},
            }
            for example in range(examples)
        ]
        (where / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        means = {metric: float(values[metric].mean()) for metric in METRICS}
        tasks[task] = {**means, "examples": examples, "tokens": 20 * examples}
    means = {metric: float(np.mean([task[metric] for task in tasks.values()])) for metric in METRICS}
    return {**means, "tasks": tasks, "limited": False}


def write_run(
    sweep: Path,
    data: str = "pydocs_1k",
    rows: int = 1000,
    seed: int = 0,
    level: float = 0.4,
    *,
    model: str = "tiny",
    examples: int = 30,
    streams: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    noise: float = 0.05,
    tasks: Sequence[str] = TASKS,
) -> Path:
    """Write a completed run's folder and return it."""
    written = OmegaConf.create(defaults())
    seeds = {f"seeds.{name}": (streams or {}).get(name, seed) for name in written.seeds}
    about = {"model.name": model, "data.name": data, "data.rows": rows, "seed": seed}
    for key, value in {**about, **seeds, **(settings or {})}.items():
        OmegaConf.update(written, key, value)
    text = OmegaConf.to_yaml(written)
    run_id = f"{model}-{data}-s{seed}-{crc32(text.encode()):08x}"
    folder = sweep / run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    sources = {"docs/questions": 500, "docs/summaries": 500, **({"pool/other": rows - 1000} if rows > 1000 else {})}
    (folder / "mix.json").write_text(json.dumps({"name": data, "seed": seed, "rows": rows, "sources": sources}))
    generator = np.random.default_rng([rows, seed])
    points = [
        {"step": step, "loss": 1.2 + 1.5 * np.exp(-step / 40) + generator.normal(0, 0.05), "tokens_per_second": 320.0}
        for step in range(10, rows // 10 + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    train = {"steps": rows // 10, "tokens": rows * 90, "seconds": rows / 4, "tokens_per_second": 340.0 + seed}
    record = {
        **{"schema": 1, "run_id": run_id, "status": "completed", "config_hash": run_id[-8:], "seed": seed},
        "model": {"name": model, "id": f"test/{model}", "revision": "1", "backend": "transformers"},
        "data": {"name": data, "rows": rows, "digest": f"{data}{seed}", "tokens": rows * 100},
        "train": {**train, "peak_memory_bytes": 3 * 10**9, "final_loss": 1.3},
        "eval": {
            stage: write_stage(folder, stage, reached, examples, noise, tasks)
            for stage, reached in (("base", 0.3), ("tuned", level))
        },
        **{"versions": {"tometune": "0.1.0"}, "git": {"commit": "0" * 40, "dirty": False}, "attempts": 1},
        **{"started": "2026-11-24T12:00:00+00:00", "finished": "2026-11-24T12:10:00+00:00"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_table(
    sweep: Path, seeds: int = 3, effect: float = 0.0, deviation: float = 0.01, **options: Any
) -> list[Path]:
    """Write a table: three mixes of growing size, each `effect` better than the one before."""
    generator = np.random.default_rng(5)
    return [
        write_run(
            sweep,
            *(f"pydocs_{size}k", 1000 * size, seed, 0.4 + effect * (size - 1) + generator.normal(0, deviation)),
            **options,
        )
        for size in (1, 2, 3)
        for seed in range(seeds)
    ]


@contextmanager
def editing(folder: Path) -> Iterator[dict[str, Any]]:
    """Change a run's run.json."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    yield record
    path.write_text(json.dumps(record))


def edit(folder: Path, **changes: Any) -> None:
    with editing(folder) as record:
        record.update(changes)


def change_rows(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change each line of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
