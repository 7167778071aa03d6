"""The second mix of `prepare data=… compare=…`: its config, composed as the first one's was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tometune.common.errors import ConfigError, UserError, did_you_mean
from tometune.config.checks import check
from tometune.config.command_line import parse
from tometune.config.messages import composition_errors
from tometune.config.root import Config
from tometune.config.settled import settled
from tometune.config.store import CONFIG_NAME, conf_dir, typed

OWN = ("data", "seeds.data")
"""What may be set for the second mix alone."""

NOT_SHARED = ("compare", "data", "data.name", "data.rows", "data.pool.draw")
"""What makes the first mix the one it is; all else on the command line holds for both."""


def compared(config: Config) -> Config:
    """Return the config of the mix that `compare` names.

    What the command line sets holds for both mixes, e.g. the paths of base and pool; not `data.name` and `data.rows`,
    and not what the second mix does not read, e.g. of a pool where it has none. After the name may stand overrides for
    the second alone: `'compare="files_300k seeds.data=1"'`.

    Raises:
        UserError: there is no mix of this name, it is the same one, or an override is wrong.
    """
    name, *own = (config.compare or "").split() or [""]
    hydra = HydraConfig.get()
    given = list(hydra.overrides.task)
    search = [f"hydra.searchpath=[{','.join(_folders(hydra))}]"] if _folders(hydra) else []
    with _loader() as options:
        if name not in options:
            near = did_you_mean(name, options)
            raise UserError(f"compare={name}: no such mix{near} (mixes: {', '.join(options)})")
        if not own and name == hydra.runtime.choices.get("data"):
            raise UserError(f"compare={name}: is the mix of data={name} itself; name another, or what differs, "
                f"""e.g. 'compare="{name} seeds.data=1"'""")  # fmt: skip
        for override in parse(own):
            if not f"{override.key_or_group}.".startswith(tuple(f"{key}." for key in OWN)):
                raise UserError(f"compare: {override.input_line} is not about the mix; set {' or '.join(OWN)} there")
        plain = _composed([*search, f"data={name}"])
        shared = _shared(given, has_pool=plain.data.pool is not None)
        made = typed(_composed([*search, *shared, f"data={name}", *own]))
    made.data = settled(made.data)
    try:
        check(made)
    except ConfigError as error:
        raise ConfigError([f"compare={name}: {problem}" for problem in error.problems]) from None
    return made


def _shared(given: Sequence[str], has_pool: bool) -> list[str]:
    """Return the overrides of the command line that hold for both mixes."""
    return [
        override.input_line or ""
        for override in parse(given)
        if override.key_or_group not in NOT_SHARED
        and (has_pool or not f"{override.key_or_group}.".startswith("data.pool."))
    ]


def _folders(hydra: HydraConf) -> list[str]:
    """Return the folders of YAML files beside `conf/`, as Hydra was told of them."""
    sources = hydra.runtime.config_sources
    return [f"'file://{s.path}'" for s in sources if s.schema == "file" and s.path and s.path != str(conf_dir())]


def _composed(overrides: list[str]) -> DictConfig:
    """Compose a config.

    Raises:
        ConfigError: an override is wrong.
    """
    try:
        with composition_errors([conf_dir()]):
            return compose(CONFIG_NAME, overrides=overrides)
    except ConfigError as error:
        raise ConfigError([f"compare: {problem}" for problem in error.problems]) from error


@contextmanager
def _loader() -> Iterator[list[str]]:
    """Give the mixes in `conf/data`, and let Hydra compose while the body runs; a run of its own is going on."""
    instance = GlobalHydra.instance()
    before = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            yield sorted(instance.config_loader().get_group_options("data"))
    finally:
        instance.clear()
        instance.hydra = before
