"""The config of an earlier run, with what the command line changes about it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tometune.common.errors import UserError
from tometune.config.root import Config
from tometune.config.store import typed

OF_THE_RUN = ("seed", "model", "experiment")
"""What made the run, beside what evaluate never reads: not to be chosen anew when it is scored."""


def stored_config(folder: Path) -> Config:
    """Return the config of a run folder.

    Raises:
        UserError: config.yaml is missing, broken, or of another version.
    """
    path = folder / "config.yaml"
    try:
        loaded = OmegaConf.create(path.read_text(encoding="utf-8"))
        assert isinstance(loaded, DictConfig), "not keys and values"
        return typed(loaded)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a run folder, e.g. run=outputs/<run_id>") from None
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a config of this version ({reason}); run its command again") from None


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
