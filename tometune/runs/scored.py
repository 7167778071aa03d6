"""What `evaluate` scores, a run's model before and after training or any other model, and where its scores are kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text
from tometune.config.root import Config
from tometune.models.source import WHOLE
from tometune.runs.identity import MEANING, content_hash, content_of, model_content, plain
from tometune.runs.inputs import evaluation_fingerprints
from tometune.runs.provenance import git_state, versions
from tometune.runs.run import SCHEMA, now, read_record
from tometune.runs.stored import run_folder, stored_config, with_command_line

SEPARATE = "evaluation.json"  # of an evaluation with a folder of its own; a run's own tasks are in its run.json


@dataclass
class Subject:
    """A model and the tasks it is scored on."""

    id: str  # name of the folder, and of the run in the tracker
    folder: Path  # gets `eval/<stage>/<task>.jsonl`
    file: Path  # run.json if the tasks are the run's own, else evaluation.json
    config: Config  # the model and the tasks
    run: Path | None  # folder of the run that trained the model; None for a model that was not trained here
    record: dict[str, Any]  # content of `file`

    @property
    def separate(self) -> bool:
        """Whether the scores have a record of their own."""
        return self.file.name == SEPARATE

    @property
    def completed(self) -> bool:
        """Whether nothing is left to do. A run's own scores are always checked again, file by file."""
        return self.separate and self.record.get("status") == "completed"

    @contextmanager
    def recording(self, model: Mapping[str, Any]) -> Iterator[None]:
        """Write the record once the body is done; a run's own record only gets the scores."""
        if self.separate:
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
        if self.separate:
            self.record |= {"status": "completed", "finished": now()}
        write_json(self.file, self.record)

    def add_tracking(self, described: Mapping[str, Any]) -> None:
        """Record where the tracker put it; a run that is scored again without a tracker keeps its earlier entry."""
        if self.separate or described["tracker"] != "none":
            self.record["tracking"] = dict(described)

    def add_scores(self, stage: str, scores: Mapping[str, Any]) -> None:
        self.record["eval"] = {**self.record["eval"], stage: scores}


def find_subject(config: Config) -> Subject:
    """Return what the command line names; writes nothing.

    Raises:
        UserError: the run does not exist or is not trained yet, or the command line changes a setting that made it.
    """
    if config.run is None:
        name = f"{config.model.name}-{config.eval.name}-s{config.seeds.generation}-{_digest(config)[:8]}"
        return _separate(name, Path(config.paths.outputs).expanduser() / name, config, None)
    folder = run_folder(config.run, config.paths)
    record = read_record(folder)
    stored = stored_config(folder)
    what, file = ("adapter", "adapter/adapter_config.json") if stored.lora.enabled else (WHOLE, f"{WHOLE}/config.json")
    if not (folder / file).exists():
        raise UserError(f"{folder}: holds no {what} (status {record['status']}); finish its training first")
    wanted = with_command_line(stored, config)
    digest = _digest(wanted)
    if digest == _digest(stored):
        return Subject(record["run_id"], folder, folder / "run.json", wanted, folder, record)
    name = f"{wanted.eval.name}-{digest[:8]}"
    return _separate(f"{record['run_id']}-{name}", folder / "evaluations" / name, wanted, folder)


def _separate(name: str, folder: Path, config: Config, run: Path | None) -> Subject:
    """Return a subject whose scores have a folder of their own."""
    file = folder / SEPARATE
    record = read_record(folder, file.name) if file.exists() else {}
    return Subject(name, folder, file, config, run, record)


def _digest(config: Config) -> str:
    """Hash everything that can change the scores of a given model."""
    content = {"meaning": MEANING, "model": model_content(config.model), "eval": content_of(config.eval)}
    content["inputs"] = evaluation_fingerprints(config.model, config.eval)
    return content_hash(content | {"seed": config.seeds.generation})
