"""The folder and config of an earlier run, and the settings that a command line changes in it."""

import logging
from dataclasses import is_dataclass
from glob import escape
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tometune.common.errors import UserError
from tometune.config.root import Config, PathsConfig, typed
from tometune.runs.identity import MEANING, identity
from tometune.runs.run import HASH_LETTERS, read_record, runs_folder

log = logging.getLogger(__name__)

_warned: set[str] = set()

# Choices that made the run and cannot be changed when it is scored again. (evaluate rejects data, lora, trainer.)
OF_THE_RUN = ("seed", "model", "experiment")


def run_folder(name: str, paths: PathsConfig, key: str = "run") -> Path:
    """Return the folder of a run that is named by a path, by an id under `paths.outputs`, or by an id in a sweep.

    Raises:
        UserError: there is none.
    """
    sweeps = Path(paths.multirun).expanduser().glob(f"*/{escape(name)}")
    for folder in (Path(name).expanduser(), Path(paths.outputs).expanduser() / name, *sorted(sweeps, reverse=True)):
        if folder.is_dir():
            return folder
    raise UserError(f"{key}={name}: no such folder or run id; name a run folder, e.g. {key}=outputs/<run_id>")


def stored_config(folder: Path) -> Config:
    """Return the config of a run folder, which an older or newer version may have written.

    Settings that this version lacks are ignored with one warning; settings that the file lacks take their defaults.

    Raises:
        UserError: config.yaml is missing or broken, or holds a value that its setting cannot take.
    """
    path = folder / "config.yaml"
    try:
        loaded = OmegaConf.create(path.read_text(encoding="utf-8"))
        assert isinstance(loaded, DictConfig), "not keys and values"
        if OmegaConf.select(loaded, "eval.engine") == "vllm":  # this engine was removed
            loaded.eval.engine = "auto"
        unknown: list[str] = []
        known = _known_settings(OmegaConf.to_container(loaded), Config, "", unknown)
        config = typed(OmegaConf.create(known))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a run folder, e.g. run=outputs/<run_id>") from None
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as a config ({reason}); repeat the command that made this run"
        ) from None
    keys = ", ".join(unknown)
    if unknown and keys not in _warned:  # once per process: a sweep has many runs of the same version
        _warned.add(keys)
        log.warning("%s: ignoring settings that this version does not have: %s", path, keys)
    return config


def _known_settings(values: Any, schema: Any, prefix: str, unknown: list[str]) -> Any:
    """Return `values` without the keys that `schema` (a type annotation) does not have; add those to `unknown`."""
    if not isinstance(values, dict):
        return values
    types = (schema, *get_args(schema))  # a field may be optional: `PoolConfig | None`
    group = next((each for each in types if is_dataclass(each)), None)
    if get_origin(schema) is dict:  # e.g. `dict[str, TaskConfig]`: any key, each value a group
        return {key: _known_settings(value, types[-1], f"{prefix}{key}.", unknown) for key, value in values.items()}
    if group is None:
        return values
    hints = get_type_hints(group)
    unknown += [f"{prefix}{key}" for key in values if key not in hints]
    kept = {key: value for key, value in values.items() if key in hints}
    return {key: _known_settings(value, hints[key], f"{prefix}{key}.", unknown) for key, value in kept.items()}


def run_of_older_version(config: Config, run_id: str) -> Path | None:
    """Return the folder of a run with the settings of `config` that an older version of tometune made, if there is one.

    Its results may differ from those of this version (`MEANING`), so it is not reused. Its inputs are not compared.
    """
    wanted = identity(config, {})
    siblings = runs_folder(config).glob(f"{escape(run_id[:-HASH_LETTERS])}*/run.json")
    for path in sorted(siblings):
        try:
            older = read_record(path.parent).get("meaning", MEANING - 1) < MEANING
            if older and identity(stored_config(path.parent), {}) == wanted:
                return path.parent
        except UserError:  # a broken record is not the subject here
            continue
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
        if key in OF_THE_RUN:
            raise UserError(f"{key}: the run has its own; leave it out, or score a model by itself with model.id=…")
        if deleted:
            parent, _, last = key.rpartition(".")
            OmegaConf.select(target, parent).pop(last, None)  # choosing another group may have removed the task already
        elif group == "eval":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False, force_add=True)
        elif group == "model" or key == "seeds.generation":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False)
    return typed(target)
