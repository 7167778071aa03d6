"""A sweep folder: its completed runs with their settings and seeds, and the missing runs with the reasons."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError, did_you_mean
from tometune.config.root import Config
from tometune.runs.identity import identity
from tometune.runs.run import SCHEMA
from tometune.runs.stored import stored_config
from tometune.runs.sweep_file import NAME, read_cells


@dataclass(frozen=True)
class SweepRun:
    """A completed run."""

    id: str
    folder: Path
    record: dict[str, Any]
    """Its run.json."""

    settings: dict[str, Any]
    """Everything that can change the result except the seeds, flat: `{"trainer.learning_rate": 2e-4, …}`."""

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
    """As far as they are known, flat; values may be text."""

    reason: str


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep folder."""

    folder: Path
    runs: list[SweepRun]
    missing: list[Missing]
    notes: list[str]
    """Remarks for readers of the table."""


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep folder.

    Raises:
        UserError: it does not exist or holds no runs, no run is completed, run.json files have another schema version,
            or a completed run cannot be read.
    """
    if not folder.is_dir():
        others = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, others) or f"; sweeps found: {', '.join(sorted(others)) or 'none'}"
        raise UserError(f"{folder}: no such sweep folder{hint}")
    expected = {cell.name: cell.listed() for cell in read_cells(folder)}
    marks = ("run.json", "config.yaml", "checkpoints")
    found = [path for path in sorted(folder.glob("*/")) if any((path / name).exists() for name in marks)]
    if not found and not expected:
        raise UserError(f"{folder}: holds no runs; make some with python -m tometune.train -m sweep.name={folder.name}")
    records = {path.name: _read_record(path) for path in found}
    _check_schemas(folder, records)
    runs, missing = [], []
    for name, record in records.items():
        reason = record if isinstance(record, str) else _reason_missing(record)
        if reason is None:
            assert isinstance(record, dict)
            config = stored_config(folder / name)
            runs.append(SweepRun(name, folder / name, record, _settings(config, record), asdict(config.seeds)))
        else:
            missing.append(_missing(folder, name, reason, expected.get(name, {})))
    for name, cell in expected.items():
        if name not in records:
            reason = f"failed: {cell['error']}" if cell.get("error") else "not started"
            missing.append(_missing(folder, name, reason, cell))
    missing.sort(key=lambda cell: cell.run_id)
    if not runs:
        raise UserError(
            f"{folder}: none of its {len(missing)} runs is completed ({missing[0].run_id}: {missing[0].reason}); "
            "run the sweep again"
        )
    extra = sorted(run.id for run in runs if expected and run.id not in expected)
    notes = [f"Not listed in {NAME} but included: {', '.join(extra)}."] if extra else []
    return Sweep(folder, runs, missing, notes)


def _read_record(folder: Path) -> dict[str, Any] | str:
    """Return the content of run.json, or the reason why there is none."""
    fix = "delete it and start the sweep again; the run resumes from its checkpoint"
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "interrupted before run.json was written"
    except ValueError as error:
        return f"run.json is broken ({error}); {fix}"
    return record if isinstance(record, dict) else f"run.json is broken (not an object); {fix}"


def _check_schemas(folder: Path, records: Mapping[str, dict[str, Any] | str]) -> None:
    """Reject runs with another schema version, whose numbers may mean something else."""
    by_schema: dict[Any, list[str]] = {}
    for name, record in records.items():
        if isinstance(record, dict) and record.get("schema") != SCHEMA:
            by_schema.setdefault(record.get("schema"), []).append(name)
    if by_schema:
        names = "; ".join(f"schema {schema}: {', '.join(found)}" for schema, found in by_schema.items())
        raise UserError(
            f"{folder}: run.json of another version (this one reads schema {SCHEMA}): {names}; "
            "move these runs away and repeat them"
        )


def _reason_missing(record: Mapping[str, Any]) -> str | None:
    """Return why a run is not completed, or None if it is."""
    status = record.get("status")
    if status == "failed":
        return f"failed: {record.get('error', 'no reason recorded')}"
    if status != "completed":
        return "running or interrupted" if status == "running" else f"status {status}"
    lacking = [name for name in ("model", "data", "seed", "eval") if name not in record]
    if lacking:
        return f"run.json has no {', '.join(lacking)}"
    return None if "tuned" in record["eval"] else "completed without scores"


def _settings(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten everything that can change the result; for the model, what was actually loaded."""
    groups = identity(config, {})
    for name in ("meaning", "inputs", "seeds"):
        del groups[name]
    groups["lora"].pop("enabled", None)
    loaded = {f"model.{key}": record["model"].get(key) for key in ("id", "revision", "backend", "quantization")}
    return {**_flat(groups), "lora": "adapter" if config.lora.enabled else "full", **loaded}


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
    """Describe a missing run by its config.yaml, else by its entry in sweep.json."""
    known: dict[str, Any] = {key: cell[key] for key in ("model", "data", "seed") if key in cell}
    known |= dict(text.lstrip("+").split("=", 1) for text in cell.get("overrides", []) if "=" in text)
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(folder / name / "config.yaml"))
        known |= {**_flat(written), "model": written["model"]["name"], "data": written["data"]["name"]}
    except Exception:  # noqa: S110 - the run may have ended before it wrote one
        pass
    full = known.get("lora") == "none" or str(known.get("lora.enabled")).lower() == "false"
    known["lora"] = "full" if full else "adapter"
    seed = str(known.get("seed"))
    return Missing(
        run_id=name,
        model=known.get("model"),
        data=known.get("data"),
        seed=int(seed) if seed.isdigit() else None,
        settings=known,
        reason=reason,
    )
