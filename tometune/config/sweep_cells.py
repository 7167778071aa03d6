"""Composes the configs of all cells of a `-m` command before the first run starts, and lists the invalid ones.

Also turns a composed config, of a cell or of a single run, into the dataclass `Config`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.core_plugins import basic_sweeper  # hydra/sweeper=basic; not exported
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tometune.common.errors import ConfigError, UserError
from tometune.config.command_line import CommandLine, parse
from tometune.config.data import without_unused, without_unused_pool
from tometune.config.error_messages import composition_errors
from tometune.config.model import LoraConfig
from tometune.config.root import ADHOC, CONFIG_NAME, Config, check, conf_dir, typed


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, its config, and one line per problem that the checks find in it."""

    overrides: list[str]
    config: Config
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Jobs:
    """The runs of a sweep."""

    config: Config  # the config of the first run
    known: list[Job]  # all runs; empty for a search
    search: bool  # whether a sweeper such as Optuna chooses each run by the scores of earlier ones


def jobs_of(line: CommandLine) -> Jobs | None:
    """Return the runs of a command line, composed as Hydra will compose them; None if it is a single run.

    A run that fails the checks is listed with its problems. The others still run, whatever their order.

    Raises:
        ConfigError: a run cannot be composed, one size replaces those of a preset, or every run fails the checks.
    """
    if not line.multirun and not any(text.startswith(("+", "hydra")) for text in line.overrides):
        return None  # saves a composition: without -m, only an added group (+sweep=…) or a key of Hydra makes a sweep
    with composition_errors(line.extra_folder), initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if not line.multirun and hydra.get_mode(CONFIG_NAME, line.overrides) != RunMode.MULTIRUN:
            return None
        overrides = [*line.overrides, "hydra.mode=MULTIRUN"]
        master = hydra.compose_config(CONFIG_NAME, overrides, RunMode.MULTIRUN, with_log_configuration=False)
        if problem := _replaced_sizes(master):
            raise ConfigError([problem])
        search = not str(master.hydra.sweeper._target_).endswith(".BasicSweeper")
        loader = hydra.config_loader
        jobs = [_job(loader, master, overrides) for overrides in _cells(loader, master, search)]
        if all(job.problems for job in jobs):
            raise ConfigError(list(dict.fromkeys(problem for job in jobs for problem in job.problems)))
    return Jobs(jobs[0].config, [] if search else jobs, search)


def _cells(loader: ConfigLoader, master: DictConfig, search: bool) -> list[list[str]]:
    """Return the overrides of each run, as the sweeper will make them; for a search, those that all runs share."""
    params = master.hydra.sweeper.get("params") or {}
    # Unresolved, as in Hydra: data.name=${data.rows}-rows differs from run to run.
    task = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)
    assert isinstance(task, list)
    texts = [*(f"{key}={value}" for key, value in params.items()), *map(str, task)]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    if search:
        overrides = [override for override in overrides if not override.is_sweep_override()]
    return [cell for batch in basic_sweeper.BasicSweeper.split_arguments(overrides, None) for cell in batch]


def _replaced_sizes(master: DictConfig) -> str | None:
    """Return the problem of a `data.rows=N` that would give all mixes of a preset one size; None without one."""
    params = master.hydra.sweeper.get("params") or {}
    own = {override.key_or_group: override for override in parse(master.hydra.overrides.task)}
    if (rows := own.get("data.rows")) is None or rows.is_sweep_override() or "data" in own.keys() & params.keys():
        return None
    if "data.rows" in params:
        fix = f"set sweep.largest={rows.get_value_element_as_str()}, and sweep.smallest=… for the first one"
    elif "," in str(params.get("data", "")):
        fix = "choose the mixes with data=A,B, or give one mix several sizes: data=files_300k data.rows=1000,3000"
    else:
        return None
    return f"{rows.input_line}: would give all mixes of {master.sweep.name} the same size; {fix}"


def _job(loader: ConfigLoader, master: DictConfig, overrides: list[str]) -> Job:
    composed = loader.load_sweep_config(master, overrides)
    config = to_config(composed, composed.hydra)
    try:
        check(config)
    except ConfigError as error:
        return Job(overrides, config, tuple(error.problems))
    return Job(overrides, config)


def to_config(composed: DictConfig, hydra_node: HydraConf | DictConfig) -> Config:
    """Turn the composed config of one run into dataclasses.

    If the command line sets the model's id but not its name, the last part of the id becomes its name. The runs of a
    sweep without a name share the name `adhoc`; their settings that have no effect are reset to the defaults. The name
    of a mix says how many rows are held out of its base.

    Raises:
        ConfigError: a value cannot be resolved, or keys of a pool or an adapter are set for a single run that has none.
    """
    with composition_errors():
        config = typed(composed)
    keys = {override.key_or_group for override in parse(hydra_node.overrides.task)}
    if "model.id" in keys and "model.name" not in keys:
        config.model.name = slug(config.model.id)
    if hydra_node.mode == RunMode.MULTIRUN:
        config.sweep.name = ADHOC if config.sweep.name is None else config.sweep.name
        config.data = without_unused(config.data)
        config.lora = config.lora if config.lora.enabled else LoraConfig(enabled=False)
    else:
        _check_used(config, keys)
        config.data = without_unused_pool(config.data)
    if config.data.held_out.rows and not config.eval.held_out:  # else all mixes of a table lack them
        config.data.name += f"-held{config.data.held_out.rows}"
    return config


def _check_used(config: Config, keys: set[str]) -> None:
    """Reject keys of a pool or an adapter on the command line of a single run that has none: they would do nothing."""
    data, problems = config.data, []
    for key in sorted(keys):
        unused = data.pool is not None and without_unused_pool(data).pool is None
        if unused and f"{key}.".startswith("data.pool."):
            fix = "choose a mix that does, e.g. data=mix_200k, files_200k or pydocs_2k"
            fix = "set data.pool.add=1000, the number of rows to add" if data.rows is None else fix
            problems.append(f"{key}: {data.name} draws no rows from a pool; {fix}")
        if not config.lora.enabled and key.startswith("lora.") and key != "lora.enabled":
            problems.append(f"{key}: is ignored without an adapter; leave it out, or choose lora=default")
    if problems:
        raise ConfigError(problems)


def slug(model_id: str) -> str:
    """Return a file name for a hub id or a folder: its last part, in lower case."""
    last = Path(model_id).expanduser().resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._") or "model"


def arm_name(whole: str, prefix: str, sources: Sequence[str]) -> str:
    """Return the name of an arm's mix: `whole` without sources, `PREFIX-SOURCE`, or `PREFIX-others` for several."""
    if not sources:
        return whole
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", sources[0]).strip("-._")[:50] if len(sources) == 1 else "others"
    return f"{prefix}-{name or 'unnamed'}"


def log_sizes(smallest: int, rows: int | None) -> str:
    """Return numbers of rows from `smallest` to `rows` in steps of about half a power of ten: `1000,3000,10000`."""
    if rows is None:
        raise UserError("sweep.largest: is required if data.rows=null; set sweep.largest=…")
    steps = (step * smallest * 10**power for power in range(12) for step in (1, 3))
    return ",".join(map(str, [*(size for size in steps if size < rows), rows]))


# At import, as in `root`: launchers' workers resolve them, too.
OmegaConf.register_new_resolver("arm_name", arm_name, replace=True)
OmegaConf.register_new_resolver(
    "log_sizes", lambda _root_: log_sizes(_root_.sweep.smallest, _root_.sweep.largest or _root_.data.rows), replace=True
)
