"""Finds earlier runs by name, reads their configs, applies a command line to them, and finds what `evaluate` scores."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import chain, product
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text
from tometune.config.model import Backend, Precision
from tometune.config.root import Config, PathsConfig, typed
from tometune.models.source import ADAPTER, WHOLE
from tometune.runs.identity import MEANING, content_hash, content_of, identity, model_content, plain
from tometune.runs.inputs import evaluation_fingerprints
from tometune.runs.run import (
    HASH_LETTERS,
    REPEAT,
    DamageError,
    check,
    check_writable,
    new_record,
    now,
    read_record,
    runs_folder,
    score_problems,
    trained_problems,
)

log = logging.getLogger(__name__)

_warned: set[str] = set()
LATEST = "latest"  # the value of `run` that means the run that was finished last


def run_folder(name: str, paths: PathsConfig, key: str = "run") -> Path:
    """Return the folder of a run that is named by a path, by an id under `paths.outputs` or in a sweep, or `latest`."""
    outputs, multirun = Path(paths.outputs).expanduser(), Path(paths.multirun).expanduser()
    if name != LATEST:
        for folder in (Path(name).expanduser(), outputs / name, *sorted(multirun.glob(f"*/{escape(name)}"))[::-1]):
            if folder.is_dir():
                return folder
        raise UserError(f"{key}={name}: no such folder or run id; name a run folder, e.g. {key}=outputs/<run_id>")
    completed = [(path, record) for path, record in earlier_runs(paths) if record.get("status") == "completed"]
    finished = [(str(record["finished"]), (path / "run.json").stat().st_mtime_ns, path) for path, record in completed]
    if not finished:
        raise UserError(f"{key}={LATEST}: no run is finished in {outputs} or {multirun}; make one with tometune train")
    folder = max(finished)[-1]
    log.info("%s=%s: %s", key, LATEST, folder)
    return folder


def earlier_runs(paths: PathsConfig, *more: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and run.json of the runs on this machine whose record can be read, and of those below `more`."""
    outputs, multirun = Path(paths.outputs).expanduser(), Path(paths.multirun).expanduser()
    folders = [outputs.glob("*/run.json"), multirun.glob("*/*/run.json"), *(each.glob("*/run.json") for each in more)]
    for path in chain.from_iterable(map(sorted, folders)):
        with suppress(OSError, ValueError, UserError):  # a damaged record is reported by the command that needs it
            yield path.parent, read_record(path.parent)


def stored_config(folder: Path) -> Config:
    """Return the config of a run folder, which an older or newer version may have written.

    Settings that this version lacks are ignored with one warning; settings that the file lacks take their defaults.

    Raises:
        DamageError: config.yaml is missing or broken, or holds a value that its setting cannot take.
    """
    path = folder / "config.yaml"
    unknown: list[str] = []
    try:
        loaded = OmegaConf.create(path.read_text(encoding="utf-8"))
        assert isinstance(loaded, DictConfig), "not keys and values"
        if OmegaConf.select(loaded, "eval.engine") == "vllm":  # this engine was removed
            loaded.eval.engine = "auto"
        config = None
        while config is None:
            try:
                config = typed(loaded)
            except ConfigKeyError as error:  # OmegaConf stops at the first key that the schema does not have
                group, _, name = str(error.full_key).rpartition(".")
                (OmegaConf.select(loaded, group) if group else loaded).pop(name)
                unknown.append(str(error.full_key))
    except FileNotFoundError:
        raise DamageError(path, "is missing") from None
    except (OSError, OmegaConfBaseException, YAMLError, UnicodeDecodeError, AssertionError) as error:
        reason = " ".join(str(error).split("\n")[0].split()) or "is empty"
        raise DamageError(path, f"cannot be read as a config ({reason})") from None
    keys = ", ".join(unknown)
    if unknown and keys not in _warned:  # once per process: a sweep has many runs of the same version
        _warned.add(keys)
        log.warning("%s: ignoring settings that this version does not have: %s", path, keys)
    return config


def config_of(folder: Path, record: Mapping[str, Any]) -> Config:
    """Return the config of a run, checked against the hash in its record: a truncated file can still be valid YAML.

    Raises:
        DamageError: like `stored_config`, or the hash differs.
    """
    config = stored_config(folder)
    if record.get("meaning") != MEANING or "inputs" not in record:
        return config
    content = identity(config, record["inputs"])
    model = config.model  # `auto` may have stood for something else on the machine of the run
    precisions = list(Precision) if model.precision is Precision.auto else [model.precision]
    backends = list(Backend) if model.backend is Backend.auto else [model.backend]
    for precision, backend in product(precisions, backends):
        then = content["model"] | {"precision": precision.value, "backend": backend.value}
        if content_hash(content | {"model": then}) == record["config_hash"]:
            return config
    raise DamageError(folder / "config.yaml", "is not the config of this run")


def run_of_older_version(config: Config, run_id: str) -> Path | None:
    """Return the folder of a run that an older version of tometune made with the settings of `config`, if there is one.

    Its results may differ from those of this version (`MEANING`), so it is not reused. Its inputs are not compared.
    """
    wanted = identity(config, {})
    for path in sorted(runs_folder(config).glob(f"{escape(run_id[:-HASH_LETTERS])}*/run.json")):
        with suppress(UserError):  # a broken record is reported elsewhere
            older = read_record(path.parent).get("meaning", MEANING - 1) < MEANING
            if older and identity(stored_config(path.parent), {}) == wanted:
                return path.parent
    return None


def with_command_line(stored: Config, composed: Config) -> Config:
    """Return a run's config with the tracking, paths, `model.*` and `eval` settings of the command line.

    `eval=…` replaces the whole group, an added task joins the run's own tasks, and `eval.limit=…` changes that value.

    Raises:
        UserError: the command line chooses something that made the run.
    """
    target = OmegaConf.structured(stored)
    source = OmegaConf.structured(composed)
    for group in ("tracking", "paths", "run"):
        OmegaConf.update(target, group, OmegaConf.select(source, group), merge=False)
    settings = []
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = override.key_or_group
        if key == "eval/task" and override.package:  # e.g. +eval/task@eval.tasks.mine=jsonl
            key = override.package
        settings.append((key, override.is_delete()))
    for key, deleted in sorted(settings, key=lambda setting: "." in setting[0]):  # whole groups come first
        group = key.partition(".")[0]
        if key in ("seed", "model", "experiment"):  # they made the run; evaluate rejects data, lora and trainer
            raise UserError(f"{key}: the run has its own; leave it out, or score a model by itself with model.id=…")
        if deleted:
            parent, _, last = key.rpartition(".")
            OmegaConf.select(target, parent).pop(last, None)  # choosing another group may have removed the task already
        elif group == "eval":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False, force_add=True)
        elif group == "model" or key == "seeds.generation":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False)
    return typed(target)


SEPARATE = "evaluation.json"  # the record of an evaluation in a folder of its own, instead of run.json


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
        """Write the record after the body; to a run's own record only the scores are added."""
        if self.separate:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(self.config))))
            trained = None if self.run is None else str(self.run / (ADAPTER if self.config.lora.enabled else WHOLE))
            kind = "adapter" if self.config.lora.enabled else "whole_model"
            facts = {"model": dict(model), "adapter": None, "whole_model": None, kind: trained}
            self.record = new_record(self.id, facts)
        yield
        if self.separate:
            self.record |= {"status": "completed", "finished": now()}
        write_json(self.file, self.record)

    def add_scores(self, stage: str, scores: Mapping[str, Any]) -> None:
        self.record["eval"] = {**self.record["eval"], stage: scores}


def find_subject(config: Config) -> Subject:
    """Return the model and tasks that the command line names; writes nothing.

    Raises:
        UserError: the run does not exist or is not trained yet, or the command line changes a setting that made it.
    """
    if config.run is None:
        name = f"{config.model.name}-{config.eval.name}-s{config.seeds.generation}-{_digest(config)[:8]}"
        return _separate(name, Path(config.paths.outputs).expanduser() / name, config, None)
    folder = run_folder(config.run, config.paths)
    record = read_record(folder)
    stored = config_of(folder, record)
    if record["status"] != "completed" and not (folder / (ADAPTER if stored.lora.enabled else WHOLE)).exists():
        raise UserError(f"{folder}: not trained yet (status {record['status']}); {REPEAT} to resume it")
    check(folder, trained_problems(folder, stored.lora.enabled))
    check_writable(folder, "make it writable: the scores are kept in the run's folder")
    wanted = with_command_line(stored, config)
    digest = _digest(wanted)
    if digest == _digest(stored):
        if not wanted.eval.base:  # the table shows these scores, too
            check(folder, score_problems(folder, record, ["base"]))
        return Subject(record["run_id"], folder, folder / "run.json", wanted, folder, record)
    name = f"{wanted.eval.name}-{digest[:8]}"
    return _separate(f"{record['run_id']}-{name}", folder / "evaluations" / name, wanted, folder)


def _separate(name: str, folder: Path, config: Config, run: Path | None) -> Subject:
    file, record = folder / SEPARATE, dict[str, Any]()
    if file.exists():
        try:
            record = read_record(folder, file.name)
            check(folder, score_problems(folder, record))
        except DamageError as error:
            log.warning("%s: %s; scoring again", error.path, error.problem)
            record = {}
    return Subject(name, folder, file, config, run, record)


def _digest(config: Config) -> str:
    """Hash everything that can change the scores of a given model."""
    content = {"meaning": MEANING, "model": model_content(config.model), "eval": content_of(config.eval)}
    content["inputs"] = evaluation_fingerprints(config.model, config.eval)
    return content_hash(content | {"seed": config.seeds.generation})
