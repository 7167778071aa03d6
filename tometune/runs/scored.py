"""What `evaluate` scores: a run's model before and after training, or a model by itself; and where scores are kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text
from tometune.config.root import Config
from tometune.models.saved import WHOLE
from tometune.runs.identity import MEANING, content_hash, content_of, plain
from tometune.runs.inputs import evaluation_fingerprints
from tometune.runs.provenance import git_state, versions
from tometune.runs.run import SCHEMA, now, read_record
from tometune.runs.stored import stored_config, with_command_line


@dataclass
class Subject:
    """One thing to be scored on one set of tasks."""

    id: str
    """Name of the folder, and of the run in the tracker."""

    folder: Path
    """Gets `eval/<stage>/<task>.jsonl`."""

    file: Path
    """The run's run.json where the tasks are its own, else `evaluation.json` in a folder of its own."""

    config: Config
    """The model and the tasks."""

    run: Path | None
    """Folder of the run whose training is scored; None for a model by itself."""

    record: dict[str, Any]
    """What `file` says."""

    @property
    def completed(self) -> bool:
        """Whether these scores are there; a run's own are looked at again, file by file."""
        return self.file.name == "evaluation.json" and self.record.get("status") == "completed"

    @contextmanager
    def recording(self, model: Mapping[str, Any]) -> Iterator[None]:
        """Keep the record true while the body runs; a run's own record only gets the scores."""
        if self.file.name == "evaluation.json":
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(self.config))))
            self.record = {
                "schema": SCHEMA,
                "run_id": self.id,
                "status": "running",
                "model": dict(model),
                "adapter": str(self.run / "adapter") if self.run and self.config.lora.enabled else None,
                "whole_model": str(self.run / WHOLE) if self.run and not self.config.lora.enabled else None,
                "eval": {},
                "tracking": None,
                "versions": versions(),
                "git": git_state(),
                "started": now(),
                "finished": None,
            }
        yield
        if self.file.name == "evaluation.json":
            self.record |= {"status": "completed", "finished": now()}
        write_json(self.file, self.record)

    def add_tracking(self, described: Mapping[str, Any]) -> None:
        """Record where the tracker has it; a run that is scored again untracked keeps what its training said."""
        if self.file.name == "evaluation.json" or described["tracker"] != "none":
            self.record["tracking"] = dict(described)

    def add_scores(self, stage: str, scores: Mapping[str, Any]) -> None:
        """Record the scores of a stage."""
        self.record["eval"] = {**self.record["eval"], stage: scores}


def find_subject(config: Config) -> Subject:
    """Return what the command line names; writes nothing.

    Raises:
        UserError: there is no such run, it is not trained yet, or the command line changes what made it.
    """
    if config.run is None:
        return _model(config)
    folder = run_folder(config.run, Path(config.paths.outputs).expanduser())
    record = read_record(folder)
    stored = stored_config(folder)
    what, file = ("adapter", "adapter/adapter_config.json") if stored.lora.enabled else (WHOLE, f"{WHOLE}/config.json")
    if not (folder / file).exists():
        raise UserError(f"{folder}: holds no {what} (status {record['status']}); finish its training first")
    asked = with_command_line(stored, config)
    digest = _digest(asked)
    if digest == _digest(stored):
        return Subject(record["run_id"], folder, folder / "run.json", asked, folder, record)
    name = f"{asked.eval.name}-{digest[:8]}"
    return _separate(f"{record['run_id']}-{name}", folder / "evaluations" / name, asked, folder)


def run_folder(run: str, outputs: Path) -> Path:
    """Return the folder of a run that is named by a folder or by an id under `outputs`.

    Raises:
        UserError: there is neither.
    """
    for folder in (Path(run).expanduser(), outputs / run):
        if folder.is_dir():
            return folder
    raise UserError(f"run={run}: no such folder, nor {outputs / run}; name a run folder, e.g. run=outputs/<run_id>")


def _model(config: Config) -> Subject:
    """Return a model by itself."""
    name = f"{config.model.name}-{config.eval.name}-s{config.seeds.generation}-{_digest(config)[:8]}"
    return _separate(name, Path(config.paths.outputs).expanduser() / name, config, None)


def _separate(name: str, folder: Path, config: Config, run: Path | None) -> Subject:
    """Return a subject whose scores have a folder of their own."""
    file = folder / "evaluation.json"
    record = read_record(folder, file.name) if file.exists() else {}
    return Subject(name, folder, file, config, run, record)


def _digest(config: Config) -> str:
    """Hash what can change the scores of a given run."""
    content = {"meaning": MEANING, "model": content_of(config.model), "eval": content_of(config.eval)}
    return content_hash(
        {**content, "seed": config.seeds.generation, "inputs": evaluation_fingerprints(config.model, config.eval)}
    )
