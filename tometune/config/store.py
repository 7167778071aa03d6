"""Registers the schema with Hydra, and says where the YAML files are."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from tometune.config.root import Config

CONFIG_NAME = "train"
"""The primary config, `conf/train.yaml`, of every verb."""

ADHOC = "adhoc"
"""Name of a sweep that was given none."""


def register() -> None:
    """Register the typed root node, which makes unknown keys and wrong types fail."""
    ConfigStore.instance().store(name="schema", node=Config)


def conf_dir() -> Path:
    """Return the folder of the YAML files: inside the package where it was installed, else the checkout's own."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def typed(composed: DictConfig) -> Config:
    """Turn a composed config, without its `hydra` node, into dataclasses.

    It is merged into the schema once more, because an override with a plus can add keys that are not in it.

    Raises:
        OmegaConfBaseException: a key is not in the schema, or a value cannot be resolved.
    """
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(composed)))
    assert isinstance(config, Config)
    return config


# At import, not in register(): a launcher's worker composes configs too, and imports this module but runs no verb.
OmegaConf.register_new_resolver(
    "sweep_folder", lambda here, multirun, name: str(Path(here, multirun, name or ADHOC)), replace=True
)
OmegaConf.register_new_resolver("conf_dir", lambda: str(conf_dir()), replace=True)
