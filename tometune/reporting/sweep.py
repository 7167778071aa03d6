"""A sweep folder: which of its runs are done, with which settings and seeds, and which are missing and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError, did_you_mean
from tometune.config.root import Config
from tometune.reporting.records import (
    EXPECTED,
    check_schemas,
    expected_cells,
    is_run,
    read_record,
    reason_missing,
)
from tometune.runs.identity import identity
from tometune.runs.stored import stored_config


@dataclass(frozen=True)
class SweepRun:
    """A completed run."""

    id: str
    folder: Path
    record: dict[str, Any]
    """Its run.json."""

    settings: dict[str, Any]
    """What can change the result, flat: `{"trainer.learning_rate": 2e-4, …}`; seeds are left out."""

    streams: dict[str, int]
    """Seed of each stream: data, order, adapter, generation."""

    @property
    def limited(self) -> bool:
        """Whether `eval.limit` left examples out."""
        return any(bool(stage.get("limited")) for stage in self.record["eval"].values())


@dataclass(frozen=True)
class Missing:
    """A cell without a completed run."""

    run_id: str
    model: str | None
    data: str | None
    seed: int | None
    settings: dict[str, Any]
    """What is known of them, flat; values may be text."""

    reason: str


@dataclass(frozen=True)
class Sweep:
    """A sweep folder as it was read."""

    folder: Path
    runs: list[SweepRun]
    missing: list[Missing]
    notes: list[str]
    """What a reader of the table should know about the folder."""


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep folder.

    Raises:
        UserError: it is not there or holds no runs, none is completed, they are of other schema versions, or a
            completed run cannot be read.
    """
    if not folder.is_dir():
        others = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, others) or f"; there are: {', '.join(sorted(others)) or 'none'}"
        raise UserError(f"{folder}: no such sweep folder{hint}")
    expected = expected_cells(folder)
    found = [path for path in sorted(folder.glob("*/")) if is_run(path)]
    if not found and not expected:
        raise UserError(f"{folder}: holds no runs; make some with python -m tometune.train -m sweep.name={folder.name}")
    records = {path: read_record(path) for path in found}
    check_schemas(folder, records)
    runs, missing = [], []
    for path, record in records.items():
        reason = record if isinstance(record, str) else reason_missing(record)
        if reason is None:
            assert isinstance(record, dict)
            runs.append(_completed(path, record))
        else:
            missing.append(_missing(folder, path.name, reason, expected.get(path.name, {})))
    names = {path.name for path in found}
    absent = [
        _missing(folder, name, f"failed: {cell['error']}" if cell.get("error") else "not started", cell)
        for name, cell in expected.items()
        if name not in names
    ]
    missing = sorted([*missing, *absent], key=lambda cell: cell.run_id)
    if not runs:
        raise UserError(
            f"{folder}: none of its {len(missing)} runs is completed ({missing[0].run_id}: {missing[0].reason}); "
            "run the sweep again"
        )
    extra = sorted(run.id for run in runs if expected and run.id not in expected)
    notes = [f"Not in {EXPECTED}, but in the folder and counted: {', '.join(extra)}."] if extra else []
    return Sweep(folder, runs, missing, notes)


def _completed(folder: Path, record: dict[str, Any]) -> SweepRun:
    """Read the settings of a completed run."""
    config = stored_config(folder)
    return SweepRun(folder.name, folder, record, _settings(config, record), asdict(config.seeds))


def _settings(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what can change the result; of the model, what was really loaded."""
    groups = identity(config, {})
    for name in ("meaning", "inputs", "seeds"):
        del groups[name]
    groups["lora"].pop("enabled", None)
    loaded = {f"model.{key}": record["model"].get(key) for key in ("id", "revision", "backend", "quantization")}
    return {**_flat(groups), "lora": _lora(config.lora.enabled), **loaded}


def _lora(enabled: bool) -> str:
    """Return what was trained, in one word: by it cells of full fine-tuning are told apart."""
    return "adapter" if enabled else "full"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, list) else value
    return flat


def _missing(folder: Path, name: str, reason: str, cell: Mapping[str, Any]) -> Missing:
    """Say of which cell a run is missing, from its config.yaml, else from what the sweep's list says of it."""
    told: dict[str, Any] = {key: cell[key] for key in ("model", "data", "seed") if key in cell}
    told |= dict(text.lstrip("+").split("=", 1) for text in cell.get("overrides", []) if "=" in text)
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(folder / name / "config.yaml"))
        told |= {**_flat(written), "model": written["model"]["name"], "data": written["data"]["name"]}
    except Exception:  # noqa: S110 - a run that never got so far has none
        pass
    told["lora"] = _lora(told.get("lora") != "none" and str(told.get("lora.enabled")).lower() != "false")
    seed = str(told.get("seed"))
    return Missing(
        run_id=name,
        model=told.get("model"),
        data=told.get("data"),
        seed=int(seed) if seed.isdigit() else None,
        settings=told,
        reason=reason,
    )
