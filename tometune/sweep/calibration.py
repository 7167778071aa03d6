"""What runs took on this machine, kept in `<cache>/calibration.json`, to foretell what the next ones will take."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock

from tometune.common.distributed import processes
from tometune.common.files import write_json
from tometune.config.root import Config
from tometune.models.load import resolve_backend

NAME = "calibration.json"
SCHEMA = 1
KEPT = 5
"""Runs of one shape that are remembered, first ones of a process apart; the median is what is foretold."""


@dataclass(frozen=True)
class Speed:
    """What one run took, by the amounts that it scales with."""

    train: float
    """Seconds a token of training."""

    evaluation: dict[str, float]
    """Seconds an example, by `<stage>/<task>`."""

    overhead: float | None
    """Seconds beside training and evaluation, of a run whose process had made another before: data, the model."""

    start: float | None
    """The same of a process's first run, imports included."""

    memory: float
    """Bytes at the peak."""

    disk: float
    """Bytes of the run's folder, without its checkpoints."""

    checkpoint: float = 0.0
    """Bytes of one checkpoint."""


def shape(config: Config) -> str:
    """Return the key under which runs are comparable: model, device, and what a step looks like."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    model, trainer, lora = config.model, config.trainer, config.lora
    at_once = config.eval.batch_size or "by memory"
    trained = f"r {lora.r}" if lora.enabled else "every weight"
    parts = {
        "model": f"{model.id} {model.quantization} {model.precision}",
        "backend": f"{resolve_backend(model)} {model.attn_implementation}",
        "device": f"{processes()} x {device}, {torch.get_num_threads()} threads",
        "rows": f"{trainer.micro_batch} x {trainer.max_length}, packing {trainer.packing}",
        "step": f"checkpointing {trainer.gradient_checkpointing}, {trainer.loss_type}, {trainer.optim}, {trained}",
        "answers": f"{config.eval.engine}, batch {at_once}, prompts of {config.eval.max_prompt_tokens}",
    }
    return "; ".join(f"{name}: {value}" for name, value in parts.items())


def measured(record: Mapping[str, Any], seconds: float, first: bool, folder: Path) -> Speed | None:
    """Return what a finished run took; None where it trained in several attempts, whose costs are not all in it.

    Args:
        record: run.json.
        seconds: of the whole run, by the clock.
        first: whether it was its process's first one.
        folder: the run's folder.
    """
    if record["attempts"] != 1 or not record["train"]["tokens"]:
        return None
    tasks = {
        f"{stage}/{name}": task for stage, found in record["eval"].items() for name, task in found["tasks"].items()
    }
    spent = record["train"]["seconds"] + sum(task["seconds"] for task in tasks.values())
    return Speed(
        train=record["train"]["seconds"] / record["train"]["tokens"],
        evaluation={name: task["seconds"] / task["examples"] for name, task in tasks.items()},
        overhead=None if first else max(0.0, seconds - spent),
        start=max(0.0, seconds - spent) if first else None,
        memory=record["train"]["peak_memory_bytes"],
        disk=_bytes(folder) - _bytes(folder / "checkpoints"),
        checkpoint=max((_bytes(path) for path in folder.glob("checkpoints/checkpoint-*")), default=0),
    )


def _bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remember(cache: Path, key: str, speed: Speed) -> None:
    """Add what a run took."""
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{NAME}.lock"):
        runs = _read(cache)
        alike = [run for run in runs.get(key, []) if (run["start"] is None) == (speed.start is None)]
        others = [run for run in runs.get(key, []) if run not in alike]
        runs[key] = [*others, *[*alike, asdict(speed)][-KEPT:]]
        write_json(cache / NAME, {"schema": SCHEMA, "runs": runs})


def recall(cache: Path, key: str) -> Speed | None:
    """Return the median of what runs of this shape took; None where there was none."""
    runs = [Speed(**run) for run in _read(cache).get(key, [])]
    if not runs:
        return None
    tasks = {name for run in runs for name in run.evaluation}
    return Speed(
        train=median(run.train for run in runs),
        evaluation={name: median(run.evaluation[name] for run in runs if name in run.evaluation) for name in tasks},
        overhead=_middle([run.overhead for run in runs]),
        start=_middle([run.start for run in runs]),
        memory=max(run.memory for run in runs),
        disk=median(run.disk for run in runs),
        checkpoint=median(run.checkpoint for run in runs),
    )


def _middle(values: list[float | None]) -> float | None:
    """Return the median of what was measured."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _read(cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what is kept; a file that is broken or of another version is as good as none."""
    try:
        content = json.loads((cache / NAME).read_text(encoding="utf-8"))
        runs: dict[str, list[dict[str, Any]]] = content["runs"] if content["schema"] == SCHEMA else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return runs
