"""A sweep folder: its completed runs with their settings and seeds, and the missing runs with the reasons."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError, did_you_mean
from tometune.common.integrity import defect
from tometune.config.root import Config
from tometune.runs.identity import identity
from tometune.runs.integrity import score_problems
from tometune.runs.run import REPEAT, SCHEMA, DamageError
from tometune.runs.stored import config_of
from tometune.runs.sweep_file import NAME, read_cells
from tometune.tracking.tracker import flatten

log = logging.getLogger(__name__)

PARTS = ("base", "pool")

CONTENT = {
    "data.base": "content of data.base",
    "data.pool": "content of data.pool",
    "data.digest": "rows of the mix for one seed",
    "model.dtype": "number format of the model",
    "meaning": "version of tometune that made the run",
}
"""Things that can differ between runs of one config, and their names in notes."""


@dataclass(frozen=True)
class SweepRun:
    """A completed run."""

    id: str
    folder: Path
    model: str
    data: str
    rows: int
    record: dict[str, Any]  # its run.json
    # What can change the result, except seeds, flat: `{"trainer.learning_rate": 2e-4, …}`; with the keys of `CONTENT`.
    settings: dict[str, Any]
    streams: dict[str, int]  # seed of each stream: data, order, adapter, generation


@dataclass(frozen=True)
class Missing:
    """A cell without a completed run."""

    run_id: str
    model: str | None
    data: str | None
    seed: int | None
    settings: dict[str, Any]  # as far as they are known, flat; values may be text
    reason: str


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep folder."""

    folder: Path
    runs: list[SweepRun]
    missing: list[Missing]
    notes: list[str]  # for readers of the table
    design: str | None = None  # `sweep.design` of its runs


def read_sweep(folder: Path, run_folders: Sequence[Path] = ()) -> Sweep:
    """Read a sweep folder; or these runs, whose report is written into the folder.

    Raises:
        UserError: it does not exist or holds no runs, no run is completed, run.json files have another schema version,
            or a completed run cannot be read.
    """
    if not folder.is_dir():
        others = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, others) or f"; sweeps found: {', '.join(sorted(others)) or 'none'}"
        raise UserError(f"{folder}: no such sweep folder{hint}")
    expected = {} if run_folders else {cell.name: cell.listed() for cell in read_cells(folder)}
    found = _folders_of_runs(folder, run_folders)
    if not found and not expected:
        raise UserError(f"{folder}: holds no runs; make some with tometune train -m sweep.name={folder.name}")
    places = {path.name: path for path in found}
    records = {name: _read_record(path) for name, path in places.items()}
    others = [
        f"{name} (schema {record.get('schema')})"
        for name, record in records.items()
        if isinstance(record, dict) and record.get("schema") != SCHEMA
    ]
    if others:  # its numbers may mean something else
        raise UserError(
            f"{folder}: run.json of another version (this one reads schema {SCHEMA}): {', '.join(others)}; "
            "move these runs away and repeat them"
        )
    runs, missing, design = [], [], None
    for name in dict.fromkeys([*records, *expected]):
        record, cell, place = records.get(name), expected.get(name, {}), places.get(name, folder / name)
        if record is None:
            reason = f"failed: {cell['error']}" if cell.get("error") else "not started"
            missing.append(_missing(place, name, reason, cell))
        elif isinstance(record, str):
            missing.append(_missing(place, name, record, cell))
        else:
            try:
                config, data = config_of(place, record), record["data"]
            except DamageError as error:
                missing.append(_missing(place, name, f"{error.path.name} {error.problem}; {REPEAT}", cell))
                continue
            design = config.sweep.design or design
            names = record["model"]["name"], data["name"], data["rows"]
            settings = {**_settings(config, record), **_content(place, record)}
            runs.append(SweepRun(name, place, *names, record, settings, asdict(config.seeds)))
    missing.sort(key=lambda cell: cell.run_id)
    if not runs:
        raise UserError(
            f"{folder}: none of its {len(missing)} runs is completed ({missing[0].run_id}: {missing[0].reason}); "
            "run the sweep again"
        )
    extra = sorted(run.id for run in runs if expected and run.id not in expected)
    notes = [f"Not listed in {NAME} but included: {', '.join(extra)}."] if extra else []
    if not expected and not run_folders:
        log.warning(
            "%s: no %s, so runs that never started are not known; run the sweep again to list them", folder, NAME
        )
    return Sweep(folder, runs, missing, notes, design)


def planned(folder: Path, configs: Iterable[Config]) -> Sweep:
    """Return a sweep as its runs will record it, as far as their configs tell: without contents and results."""
    runs = []
    for number, config in enumerate(configs):
        model = {name: str(getattr(config.model, name)) for name in ("id", "backend", "quantization")}
        dtype = str(config.model.precision).replace("bf", "bfloat").replace("fp", "float")
        record = {"model": {**model, "dtype": dtype}, "data": {}, "seed": config.seed}
        names = config.model.name, config.data.name, config.data.rows or 0
        settings = _settings(config, record)
        runs.append(SweepRun(str(number), folder, *names, record, settings, asdict(config.seeds)))
    return Sweep(folder, runs, [], [])


def _folders_of_runs(folder: Path, named: Sequence[Path]) -> list[Path]:
    if named:
        found = list(dict.fromkeys(path.resolve() for path in named))
        if len({path.name for path in found}) < len(named):
            raise UserError(f"runs: {', '.join(path.name for path in found)} are not different runs; name each once")
        return found
    marks = ("run.json", "config.yaml", "checkpoints")
    return [path for path in sorted(folder.glob("*/")) if any((path / name).exists() for name in marks)]


def finished_tables(multirun: Path) -> dict[str, dict[str, Any]]:
    """Return the table.json of each sweep below a folder that can be read, by the sweep's name."""
    found = {}
    for path in sorted(multirun.glob("*/table.json")):
        with suppress(OSError, ValueError):
            table = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(table, dict):
                found[path.parent.name] = table
    return found


def _read_record(folder: Path) -> dict[str, Any] | str:
    """Return the content of run.json if the run is completed and scored, else the reason why it is not."""
    path = folder / "run.json"
    if not path.exists():
        return "interrupted before run.json was written"
    try:
        if (problem := defect(path)) is not None:
            raise ValueError(problem)
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("is not an object")
        status = record.get("status")
        if record.get("schema") != SCHEMA:
            return record
        if status == "failed":
            return f"failed: {record.get('error', 'no reason recorded')}"
        if status != "completed":
            return "running or interrupted" if status == "running" else f"status {status}"
        _ = record["model"]["name"], record["data"]["name"], record["data"]["rows"], int(record["seed"])
        if "tuned" not in record["eval"]:
            return "completed without scores"
    except (ValueError, KeyError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        log.warning("%s: %s, so the run is left out", path, reason)
        return f"run.json {reason}; {REPEAT}"
    damaged = [f"{name} {problem}" for name, problem in score_problems(folder, record) if name.endswith(".jsonl")]
    return f"{damaged[0]}; {REPEAT}" if damaged else record


def _settings(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that can change the result, flat; for the model, the facts of the one that was loaded."""
    groups = identity(config, {})
    for name in ("meaning", "inputs", "seeds"):
        del groups[name]
    groups["lora"].pop("enabled", None)
    del groups["model"]["precision"]  # `auto` means another precision on another machine
    keys = ("id", "revision", "backend", "quantization", "dtype")
    loaded = {f"model.{key}": record["model"].get(key) for key in keys}
    return {**_flat(groups), "lora": "adapter" if config.lora.enabled else "full", **loaded}


def _content(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return shortened fingerprints of the data that a run read, and the `meaning` of the version that made the run.

    Records of older versions lack the fingerprints, so they are taken from mix.json.
    """
    inputs = record.get("inputs")
    if inputs is None:
        try:
            mix = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
            # Its fingerprints are those of standardised sources, which end in the format and a version.
            inputs = {f"data.{name}": mix[name]["fingerprint"].rsplit("/", 2)[0] for name in mix if name in PARTS}
        except (OSError, ValueError, KeyError, TypeError):
            inputs = {}
    data = {key: str(inputs[key]) for key in (f"data.{name}" for name in PARTS) if key in inputs}
    short = {key: re.sub(r"\b([0-9a-f]{8})[0-9a-f]{12,}\b", r"\1", value) for key, value in data.items()}
    return {**short, "meaning": record.get("meaning", "4 or older")}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings; lists become text."""
    return {key: str(value) if isinstance(value, list) else value for key, value in flatten(values, ".").items()}


def _missing(folder: Path, name: str, reason: str, cell: Mapping[str, Any]) -> Missing:
    """Describe a missing run by its config.yaml, else by its entry in sweep.json."""
    known: dict[str, Any] = {key: cell[key] for key in ("model", "data", "seed") if key in cell}
    known |= dict(text.lstrip("+").split("=", 1) for text in cell.get("overrides", []) if "=" in text)
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        known |= {**_flat(written), "model": written["model"]["name"], "data": written["data"]["name"]}
    except Exception:  # noqa: S110 - the run may have ended before it wrote one
        pass
    full = known.get("lora") == "none" or str(known.get("lora.enabled")).lower() == "false"
    known["lora"] = "full" if full else "adapter"
    seed = str(known.get("seed"))
    return Missing(name, known.get("model"), known.get("data"), int(seed) if seed.isdigit() else None, known, reason)
