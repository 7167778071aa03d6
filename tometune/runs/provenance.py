"""The package versions and the commit of the code that a result was made with."""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("tometune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth"),
    *("hydra-core", "wandb", "rouge-score-rs"),
)


def versions() -> dict[str, str]:
    """Return the version of Python and of every package of `PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_state() -> dict[str, str | bool | None]:
    """Return the commit of the code and whether it has uncommitted changes; None where it is not a checkout."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():  # installed; a repository further up belongs to something else
        return {"commit": None, "dirty": None}
    try:
        commit = _git(package, "rev-parse", "HEAD")
        dirty = bool(_git(package, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
