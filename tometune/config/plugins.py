"""Launchers and sweepers that are packages of their own: what to install where one is missing."""

from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Plugin:
    """A package that brings options of a group of Hydra's."""

    package: str
    """Its name on PyPI."""

    install: str
    """What pip is given."""


JOBLIB = Plugin("hydra-joblib-launcher", "hydra-joblib-launcher")  # a dependency of the core
SUBMITIT = Plugin("hydra-submitit-launcher", '"tometune[slurm]"')
RAY = Plugin("hydra-ray-launcher", '"tometune[ray]"')
OPTUNA = Plugin("hydra-optuna-sweeper", '"tometune[optuna]"')

PLUGINS = {
    **dict.fromkeys(("hydra/launcher=processes", "hydra/launcher=joblib"), JOBLIB),
    **dict.fromkeys((f"hydra/launcher={name}" for name in ("submitit", "submitit_local")), SUBMITIT),
    **dict.fromkeys((f"hydra/launcher={name}" for name in ("slurm", "submitit_slurm")), SUBMITIT),
    **dict.fromkeys((f"hydra/launcher={name}" for name in ("ray_local", "ray_cluster", "ray")), RAY),
    "hydra/sweeper=optuna": OPTUNA,
}
"""By choice: presets in conf/hydra/launcher, and the plugins' own names."""


def missing_plugin(choice: str) -> str | None:
    """Return one line where a choice, e.g. `hydra/launcher=slurm`, needs a package that is not installed."""
    plugin = PLUGINS.get(choice)
    if plugin is None:
        return None
    try:
        metadata.version(plugin.package)
    except metadata.PackageNotFoundError:
        return f"{choice}: needs {plugin.package}; pip install {plugin.install}"
    return None
