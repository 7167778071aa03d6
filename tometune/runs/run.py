"""The folder of a run and its record, run.json, and which of its files are missing or damaged. Imports no torch."""

import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from tometune.common.distributed import is_first
from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_json, write_text
from tometune.common.integrity import INDEX, defect, shards
from tometune.common.progress import log_file
from tometune.config.root import Config
from tometune.models.source import ADAPTER, WHOLE
from tometune.runs.identity import MEANING, content_hash, identity, plain

log = logging.getLogger(__name__)

SCHEMA = 1  # version of run.json's layout
REPEAT = "repeat the command that made this run (tometune train …)"  # remakes what is missing or damaged
HASH_LETTERS = 8  # letters of the identity's hash in a run's id
CURVES = "metrics.jsonl"

Problem = tuple[str, str]  # a file's name in the run's folder, and what is wrong with it


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class DamageError(UserError):
    """A file of a run is missing or damaged. Repeating the command that made the run repairs it."""

    def __init__(self, path: Path, problem: str, fix: str = REPEAT) -> None:
        self.path, self.problem, self.fix = path, problem, fix
        super().__init__(f"{path}: {problem}; {fix}")

    def __reduce__(self) -> tuple[Any, ...]:  # a launcher's worker sends it
        return type(self), (self.path, self.problem, self.fix)


@dataclass
class Run:
    """A run: its id, its folder and its record."""

    id: str  # `<model>-<data>-s<seed>-<hash8>`
    folder: Path
    config_hash: str  # full hash of `identity()`
    record: dict[str, Any]  # the content of run.json; empty for a new run, or if it is damaged
    inputs: dict[str, str]  # fingerprint of each input, see `RunInputs`
    phases: list[dict[str, Any]] = field(default_factory=list)  # of this attempt, see `phase`

    @classmethod
    def find(cls, config: Config, fingerprints: Mapping[str, str]) -> "Run":
        """Name the run of a config and read its record, if any; UserError if its folder belongs to another config."""
        run_id, digest = name_of(config, fingerprints)
        folder = runs_folder(config) / run_id
        record = _record_to_continue(folder)
        if record and record["config_hash"] != digest:
            raise UserError(
                f"{folder}: belongs to another config (hash {record['config_hash'][:8]}, this one is {digest[:8]}); "
                "move it away or set paths.outputs to another folder"
            )
        return cls(run_id, folder, digest, record, dict(fingerprints))

    def reload(self) -> None:
        """Read the record again, since another process may have changed it."""
        self.record = _record_to_continue(self.folder) or self.record

    @property
    def completed(self) -> bool:
        return self.record.get("status") == "completed"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the start and the seconds of the body to `phases` in run.json; a phase that does not end is left out."""
        entry, began = {"phase": name, "started": datetime.now(UTC).isoformat(timespec="milliseconds")}, perf_counter()
        yield
        self.phases.append(entry | {"seconds": round(perf_counter() - began, 3)})
        if self.record.get("phases") is self.phases:  # `recording` has begun
            self.save()

    @contextmanager
    def recording(self, config: Config, facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[None]:
        """Keep run.json up to date while the body runs: `running`, then `completed`, or `failed` with the reason.

        A run that is killed or stopped by a signal stays `running`, and the same command resumes it. Under torchrun
        only the first process writes. `facts` are the entries known before training, e.g. `model` and `data`. The
        config is stored as config.yaml, and the manifest of the mix as mix.json.

        Raises:
            SaveError: the disk is full; everything saved before is valid.
        """
        before = self.record
        attempt = {"attempts": before.get("attempts", 0) + 1, "train": before.get("train")}
        made_by = {"meaning": MEANING, "config_hash": self.config_hash, "inputs": self.inputs, "seed": config.seed}
        # The phases of earlier attempts come first; those of this one are added to the same list.
        self.phases[:0] = before.get("phases", [])
        self.record = new_record(self.id, {**made_by, **facts, **attempt, "phases": self.phases}, before)
        if not is_first():
            yield
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
            write_json(self.folder / "mix.json", manifest, indent=None)
            self.save()
            try:
                with disk_errors(self.folder), log_file(self.folder / "train.log"):
                    yield
            except Exception as error:
                with suppress(OSError):  # on a full disk the record stays `running`; the error is reported anyway
                    self._finish("failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
                raise
            self._finish("completed")

    def add_scores(self, stage: str, scores: Mapping[str, Any]) -> None:
        """Save the scores of a stage, `base` or `tuned`, immediately, because computing them takes minutes to hours."""
        self.record["eval"] = {**self.record["eval"], stage: scores}
        self.save()

    def save(self) -> None:
        """Write run.json, in the first process only."""
        if is_first():
            write_json(self.folder / "run.json", self.record)

    def _finish(self, status: str, **facts: str) -> None:
        self.record |= {"status": status, "finished": now(), **facts}
        self.save()


def new_record(run_id: str, facts: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the record of a new attempt, with the scores of earlier attempts, which the record `before` holds."""
    before = before or {}
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "status": "running",
        **facts,
        "eval": before.get("eval", {}),
        "tracking": before.get("tracking"),
        "versions": versions(),
        "git": git_state(),
        "started": before.get("started", now()),
        "finished": None,
    }


def name_of(config: Config, fingerprints: Mapping[str, str]) -> tuple[str, str]:
    """Return the id of a config's run and the full hash that the id abbreviates; reads no file."""
    digest = content_hash(identity(config, fingerprints))
    return f"{config.model.name}-{config.data.name}-s{config.seed}-{digest[:HASH_LETTERS]}", digest


def runs_folder(config: Config) -> Path:
    """Return the folder that contains a config's run: `paths.outputs`, or the folder of its sweep."""
    if config.sweep.name is None:
        return Path(config.paths.outputs).expanduser()
    return Path(config.paths.multirun).expanduser() / config.sweep.name


def read_record(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """Read run.json, or another file with the same layout.

    Raises:
        DamageError: it is missing from a run's folder, or damaged.
        UserError: the folder is not that of a run, or the file has another schema.
    """
    path = folder / name
    if not path.exists() and not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: holds no {name}; name a run folder, e.g. run=outputs/<run_id>")
    if (problem := defect(path)) is not None:
        raise DamageError(path, problem)
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or "schema" not in record:
        raise DamageError(path, "is not a record")
    if record["schema"] != SCHEMA:
        raise UserError(f"{path}: not of schema {SCHEMA}, so another version of tometune wrote it; move it away")
    return record


def _record_to_continue(folder: Path) -> dict[str, Any]:
    """Return the record of a run, empty if run.json is missing or damaged; the run's other files are still found."""
    if not (folder / "run.json").exists():
        return {}
    try:
        return read_record(folder)
    except DamageError as error:
        log.warning("%s: %s; it is written again", error.path, error.problem)
        return {}


def check_writable(folder: Path, fix: str) -> None:
    """Raise UserError with the fix if a folder cannot be made or written, before anything slow is done."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: cannot be written to; {fix}")


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


PACKAGES = (
    *("tometune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth"),
    *("hydra-core", "wandb", "rouge-score-rs", "lm_eval"),
)


def versions() -> dict[str, str]:
    """Return the version of Python and of every package of `PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_state() -> dict[str, Any]:
    """Return the commit of the code and whether it has uncommitted changes; None where it is not a checkout."""
    package, nothing = Path(__file__).resolve().parents[1], {"commit": None, "dirty": None}
    if not (package.parent / ".git").exists():  # installed; a repository in a folder above is not ours
        return nothing
    command = ["git", "-C", str(package), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
        commit, _, dirty = found.partition("-")
        return {"commit": commit, "dirty": bool(dirty)}
    return nothing
