"""How W&B is set up: online or offline, what it may say and send, and what is wrong with its settings."""

import os
from typing import Literal

# W&B reads this when it is imported: crash reports stay on the machine unless the user asks for them.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb
from pydantic import ValidationError
from wandb.errors import AuthenticationError, UsageError

from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking.program import program

INIT_TIMEOUT = 20.0
"""Seconds the server may take to answer at the start, before the run goes on offline."""

FINISH_TIMEOUT = 300.0
"""Seconds the upload may go on after the end; what is left stays in the folder for `wandb sync`."""

REFUSALS = (UsageError, ValueError)
"""What W&B raises for a name, tag or setting that it does not take (pydantic's ValidationError is a ValueError)."""

Mode = Literal["online", "offline", "disabled"]


def check(config: TrackingConfig) -> None:
    """Find what is wrong with the names, the mode or the key, as far as it shows without a server.

    Raises:
        UserError: W&B would not take a name or tag, or was told to be online and has no key.
    """
    try:
        wandb.Settings(
            project=config.project, entity=config.entity, run_group=config.group, run_tags=tuple(config.tags)
        )
        choose_mode(config.mode)
    except REFUSALS as error:
        raise refused(error) from None
    finally:
        wandb.teardown()


def choose_mode(asked: TrackingMode) -> tuple[Mode, str | None]:
    """Return the mode and, where `auto` could not go online, the reason.

    `online` and `offline` in the config win; under `auto`, `WANDB_MODE` or W&B's own settings, then whether there is
    a key.

    Raises:
        UserError: online was asked for and there is no key.
    """
    told = {"mode": "online"} if asked is TrackingMode.online else {}
    found = wandb.setup(settings=wandb.Settings(silent=True, **told)).settings.mode
    if asked is TrackingMode.offline:
        return "offline", None
    if asked is TrackingMode.auto and found in ("offline", "dryrun"):
        return "offline", None
    if asked is TrackingMode.auto and found == "disabled":
        return "disabled", None
    reason = _missing_key()
    if reason is None:
        return "online", None
    if told_online(asked):
        raise not_online(reason)
    return "offline", reason


def _missing_key() -> str | None:
    """Return why there is no usable key in the environment, W&B's settings or netrc; None if there is one."""
    try:
        found = wandb.login(prompt=False, verify=False)
    except AuthenticationError as error:
        return one_line(error)
    return None if found else f"no API key (`{program('wandb')} login` stores one)"


def told_online(asked: TrackingMode) -> bool:
    """Return whether the user insists on the server, by the config or by the environment."""
    return asked is TrackingMode.online or (asked is TrackingMode.auto and os.environ.get("WANDB_MODE") == "online")


def not_online(reason: str) -> UserError:
    """Return the error for a user who asked for what cannot be had."""
    return UserError(f"tracking.mode: online was asked for, but {reason}; set tracking.mode=offline, or tracking=none")


def refused(error: Exception) -> UserError:
    """Return the error for a name, tag or setting that W&B does not take."""
    return UserError(f"tracking: W&B does not take this: {one_line(error)}; mend it, or tracking=none")


def one_line(error: Exception) -> str:
    """Return the first line of an error's text that says something."""
    if isinstance(error, ValidationError):
        return "; ".join(str(problem["msg"]) for problem in error.errors())
    return str(error).strip().splitlines()[0].rstrip(".")


def quiet_settings() -> wandb.Settings:
    """Return settings under which W&B says nothing on the console and sends what it is given, nothing else."""
    settings = wandb.Settings(
        silent=True,
        console="off",
        use_dot_wandb=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        finish_timeout_raises=True,
        host="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=2.0,  # seconds of curves that a kill can cost
    )
    limits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
    for name, seconds in limits.items():
        setattr(settings, name, float(os.environ.get(f"WANDB_{name.upper()}", seconds)))
    return settings
