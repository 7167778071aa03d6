"""From what Hydra composed to dataclasses: of one run, and of all the runs of a command before the first one starts."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # what hydra/sweeper=basic is; not exported
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from tometune.common.errors import ConfigError, UserError
from tometune.config.checks import check
from tometune.config.command_line import CommandLine
from tometune.config.lora import check_adapter_is_trained, settled_lora
from tometune.config.messages import explain
from tometune.config.root import Config
from tometune.config.settled import check_pool_is_drawn, settled, without_undrawn_pool
from tometune.config.store import ADHOC, CONFIG_NAME, conf_dir, typed


@dataclass(frozen=True)
class Job:
    """One run of a command with several."""

    overrides: list[str]
    """What makes it differ from the defaults, as Hydra gives it to the run."""

    config: Config
    """Its config, not checked."""

    problem: str | None = None
    """What the checks say of it, in one line; None where they say nothing."""


@dataclass(frozen=True)
class Jobs:
    """The runs of a command with several."""

    config: Config
    """What they share, with the first value of what differs."""

    known: list[Job]
    """All of them; empty for a search, which makes up its runs as it goes."""

    search: bool
    """Whether a sweeper other than Hydra's own chooses the runs by the scores of earlier ones."""

    launcher: str
    """The choice of `hydra/launcher`."""

    started: float
    """When the command began, in seconds since 1970."""


def jobs_of(line: CommandLine) -> Jobs | None:
    """Return the runs of a command line, composed as Hydra will compose them; None where it makes a single run.

    Raises:
        ConfigError: a value cannot be resolved.
    """
    started = time.time()
    extra = line.search_path if line.extra_folder is not None else []
    overrides = [*extra, *line.overrides]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        several = line.multirun or hydra.get_mode(CONFIG_NAME, overrides) == RunMode.MULTIRUN
        if not several:
            return None
        master = hydra.compose_config(
            CONFIG_NAME, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, with_log_configuration=False
        )
        search = not str(master.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}")
        launcher = str(master.hydra.runtime.choices["hydra/launcher"])
        jobs = [_job(hydra.config_loader, master, cell) for cell in _cells(hydra.config_loader, master, search)]
    return Jobs(jobs[0].config, [] if search else jobs, search, launcher, started)


def _cells(loader: ConfigLoader, master: DictConfig, search: bool) -> Sequence[list[str]]:
    """Return the overrides of each run, as the sweeper will make them; of a search, those that all its runs share."""
    params = master.hydra.sweeper.get("params") or {}
    texts = [*(f"{key}={value}" for key, value in params.items()), *master.hydra.overrides.task]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    if search:
        overrides = [override for override in overrides if not override.is_sweep_override()]
    return [cell for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]


def _job(loader: ConfigLoader, master: DictConfig, overrides: list[str]) -> Job:
    """Compose and check one run."""
    composed = loader.load_sweep_config(master, overrides)
    hydra_node = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
    config = to_config(composed, hydra_node)
    try:
        check(config)
    except UserError as error:
        return Job(overrides, config, " ".join(str(error).split("\n")))
    return Job(overrides, config)


def to_config(composed: DictConfig, hydra_node: HydraConf | DictConfig) -> Config:
    """Turn what Hydra composed for one run into dataclasses.

    A model whose id was set on the command line, but not its name, is named by the last part of its id; the jobs of
    a sweep without a name share the name `adhoc`. What a run does not read is at its default in the jobs of a sweep.

    Args:
        composed: the config without its `hydra` node.
        hydra_node: that node.

    Raises:
        ConfigError: a value cannot be resolved, or the keys of a pool or an adapter are set for a single run that has
            none.
    """
    try:
        config = typed(composed)
    except OmegaConfBaseException as error:
        raise ConfigError([explain(error, [conf_dir()])]) from error
    parser = OverridesParser.create()
    keys = {override.key_or_group for override in parser.parse_overrides(list(hydra_node.overrides.task))}
    if "model.id" in keys and "model.name" not in keys:
        config.model.name = slug(config.model.id)
    if hydra_node.mode == RunMode.MULTIRUN:
        config.sweep.name = ADHOC if config.sweep.name is None else config.sweep.name
        config.data, config.lora = settled(config.data), settled_lora(config.lora)
    else:
        check_pool_is_drawn(config.data, keys)
        check_adapter_is_trained(config.lora, keys)
        config.data = without_undrawn_pool(config.data)
    return config


def slug(model_id: str) -> str:
    """Return a file name for a hub id or a folder: its last part, in lower case."""
    last = Path(model_id).expanduser().resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._") or "model"
