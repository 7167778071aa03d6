"""Which files of a completed run are missing or damaged; imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tometune.common.integrity import INDEX, defect, shards
from tometune.models.source import ADAPTER, WHOLE
from tometune.runs.run import DamageError

Problem = tuple[str, str]  # a file's name in the run's folder, and what is wrong with it

CURVES = "metrics.jsonl"


def check(folder: Path, problems: Iterator[Problem]) -> None:
    """Raise a DamageError with the first of the problems in a run's folder, if there is one."""
    for name, problem in problems:
        raise DamageError(folder / name, problem)


def trained_problems(run: Path, adapter: bool) -> Iterator[Problem]:
    """Yield the problems of a run's adapter, or of its whole model (`lora=none`)."""
    folder = run / (ADAPTER if adapter else WHOLE)
    weights = ["adapter_model.safetensors"] if adapter else _weights(folder)
    others = ["adapter_config.json"] if adapter else ["config.json", "tokenizer_config.json"]
    for name in [*others, *weights]:
        path = folder / name
        if not path.exists() and path.with_suffix(".bin").exists():
            yield path.relative_to(run).as_posix(), "is a pickle, which can run code when it is read"
        elif (problem := defect(path)) is not None:
            yield path.relative_to(run).as_posix(), problem
        elif adapter and name in weights and not _has_lora(path):
            yield path.relative_to(run).as_posix(), "holds no LoRA weights"


def _has_lora(path: Path) -> bool:
    with safe_open(path, "np") as file:
        return any(".lora_A." in name for name in file.keys())  # noqa: SIM118 -- not a dict


def _weights(folder: Path) -> Sequence[str]:
    """Return the names of the weight files of a whole model, and of their index."""
    if not (folder / INDEX).exists():
        return ["model.safetensors"]
    try:
        return [INDEX, *shards(folder)]
    except (OSError, ValueError):
        return [INDEX]


def curve_problems(run: Path, record: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problem of metrics.jsonl, if any; its last line must be that of the last step."""
    problem = defect(run / CURVES)
    if problem is None:
        last = (run / CURVES).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")[2]
        if json.loads(last).get("step") != record["train"]["steps"]:
            problem = "ends before the last step"
    if problem is not None:
        yield CURVES, problem


def mix_problems(run: Path) -> Iterator[Problem]:
    """Yield the problem of mix.json, if any."""
    if (problem := defect(run / "mix.json")) is not None:
        yield "mix.json", problem


def score_problems(
    folder: Path, record: Mapping[str, Any], stages: Sequence[str] = ("base", "tuned")
) -> Iterator[Problem]:
    """Yield the problems of the score files that a record lists.

    The `<task>.json` next to each holds the digest of the `<task>.jsonl`; runs of old versions have none.
    """
    for stage in stages:
        for task in record["eval"].get(stage, {}).get("tasks", {}):
            path = folder / "eval" / stage / f"{task}.jsonl"
            problem, digest = defect(path), defect(path.with_suffix(".json"))
            name = path.relative_to(folder).as_posix()
            if problem is None and digest is None:
                stored: Any = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                if dict(stored).get("sha256") != sha256(path.read_bytes()).hexdigest():
                    problem = "is not what was scored"
            if problem is not None:
                yield name, problem
            elif digest is not None:
                yield str(Path(name).with_suffix(".json")), digest
