"""The config of an earlier run, with what the command line changes about it."""

import logging
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tometune.common.errors import UserError
from tometune.config.root import Config
from tometune.config.store import typed

log = logging.getLogger(__name__)

OF_THE_RUN = ("seed", "model", "experiment")
"""Choices that made the run and cannot be changed when it is scored again. (evaluate rejects data, lora, trainer.)"""


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
    if unknown:
        _warn_once(", ".join(unknown), str(path))
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


@cache
def _warn_once(keys: str, path: str) -> None:
    """Warn about unknown settings of a run, once per process however often its config is read."""
    log.warning("%s: this version has no settings %s; they are ignored", path, keys)


def with_command_line(stored: Config, composed: Config) -> Config:
    """Return the stored config with the command line's tracking and paths, and its choices of `model.*` and `eval`.

    Choosing `eval=…` takes the whole group from the command line; adding a task adds it to the run's own, and
    `eval.limit=…` changes that value.

    Raises:
        UserError: a key is set that made the run.
    """
    target = OmegaConf.structured(stored)
    source = OmegaConf.structured(composed)
    for group in ("tracking", "paths", "run"):
        OmegaConf.update(target, group, OmegaConf.select(source, group), merge=False)
    for key, removed in _set_keys():
        whole = key.partition(".")[0]
        if key in OF_THE_RUN:
            raise UserError(f"{key}: the run has its own; leave it out, or score a model by itself with model.id=…")
        if removed:
            _remove(target, key)
        elif whole == "eval":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False, force_add=True)
        elif whole == "model" or key == "seeds.generation":
            OmegaConf.update(target, key, OmegaConf.select(source, key), merge=False)
    return typed(target)


def _set_keys() -> list[tuple[str, bool]]:
    """Return keys and groups of the command line, and whether it removes them; whole groups come first."""
    keys = []
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = override.key_or_group
        added = override.package if key == "eval/task" and override.package else key  # +eval/task@eval.tasks.mine=jsonl
        keys.append((added, override.is_delete()))
    return sorted(keys, key=lambda entry: "." in entry[0])


def _remove(target: DictConfig, key: str) -> None:
    """Remove a task, unless the choice of a group has done so."""
    parent, _, last = key.rpartition(".")
    tasks = OmegaConf.select(target, parent)
    if last in tasks:
        del tasks[last]
