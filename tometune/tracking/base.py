"""The small interface behind which every tracker stands, and what all of them are told at the end of a run."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tometune.config.tracking import TrackingConfig


@dataclass(frozen=True)
class RunLabels:
    """What a tracker is told about a run when it starts."""

    run_id: str
    """Content-derived name; the same for every attempt of the run."""

    job_type: str
    """The verb, e.g. `train`."""

    group: str
    """Runs of one group are folded together."""

    folder: Path
    """The run's folder; trackers write below it."""

    config: Mapping[str, Any]
    """The resolved config as plain values."""

    replaces: bool = False
    """Whether this attempt makes earlier ones that were not uploaded yet worthless."""


class RunTracker(ABC):
    """Curves, tables and files of one run; also a context manager that finishes the run."""

    def __init__(self, config: TrackingConfig, labels: RunLabels) -> None:
        self.config = config
        self.labels = labels
        self.step = 0
        """Last step that was logged; tables and closing values belong to it."""

    @abstractmethod
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add one point to each of these curves, at the optimiser's own step (0 is before training)."""

    @abstractmethod
    def summary(self, values: dict[str, Any]) -> None:
        """Set the single values by which runs are compared."""

    @abstractmethod
    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Store a table, e.g. of predictions."""

    @abstractmethod
    def page(self, name: str, html: str) -> None:
        """Show an HTML page, where the tracker can."""

    @abstractmethod
    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any] | None = None) -> None:
        """Store a file or a folder as a named, versioned artifact."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """Close the run; every status but `completed` marks it as failed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what run.json says under `tracking`: the tracker, its mode, where to look, how to sync."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("completed" if kind is None else "failed")

    def results(self, record: Mapping[str, Any], folder: Path) -> None:
        """Store what a run came to: its numbers, its predictions, the mix it saw, the adapter it learnt.

        Args:
            record: the run's record, as in run.json.
            folder: the run's folder, with `eval/<stage>/<task>.jsonl`, `mix.json` and `adapter/`.
        """
        if record.get("train"):  # an attempt that found the training done has logged no step itself
            self.step = max(self.step, record["train"]["steps"])
        groups = {name: record[name] for name in ("data", "train", "eval") if record.get(name)}
        self.summary(numbers(groups))
        for task, (columns, rows) in prediction_tables(folder, self.config.prediction_rows).items():
            self.table(f"predictions/{task}", columns, rows)
        name = sanitise(self.labels.run_id, 100)
        if (folder / "mix.json").exists():
            self.artifact(f"mix-{name}", "mix", folder / "mix.json", {"rows": groups["data"]["rows"]})
        if self.config.log_adapter and (folder / "adapter").exists():
            self.artifact(f"adapter-{name}", "model", folder / "adapter", dict(record["model"]))


def sanitise(name: str, most: int) -> str:
    """Return `name` with only letters, digits, `.`, `_` and `-`; the end, where a run id has its hash, is kept."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-most:].lstrip(".-")


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested mappings to their numbers: `{"eval": {"base": {"rouge1": .3}}}` → `{"eval/base/rouge1": .3}`."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat


def prediction_tables(folder: Path, rows_per_stage: int) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return, for each task, columns and the first rows of every stage's `eval/<stage>/<task>.jsonl`."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("eval/*/*.jsonl")) if rows_per_stage else []:
        with path.open(encoding="utf-8") as lines:
            for _, line in zip(range(rows_per_stage), lines, strict=False):
                row = {"stage": path.parent.name, **_cells(json.loads(line))}
                examples.setdefault(path.stem, []).append(row)
    return {task: _table(rows) for task, rows in examples.items()}


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Line rows up under the union of their keys; a cell that a row lacks is None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[row.get(column) for column in columns] for row in rows]


def _cells(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a JSON object into cells: nested objects into `outer.inner`, lists into text."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            cells |= _cells(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            texts = (entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in value)
            cells[prefix + key] = "\n\n".join(texts)
        else:
            cells[prefix + key] = value
    return cells
